"""What griffe needs to know of this package (`mkdocs.yml`): comments beside parameters, and methods that `@patch` adds to a class."""
import ast
import io
import re
import tokenize
from functools import lru_cache
from pathlib import Path

import griffe


@lru_cache
def comments(
    path:Path,  # a module
) -> dict:  # number of a line -> the comment on it
    "Comments of a module by their lines, as Markdown."
    escaped = lambda text: re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], text)
    tokens = tokenize.generate_tokens(io.StringIO(Path(path).read_text(encoding="utf-8")).readline)
    return {t.start[0]: escaped(t.string.lstrip("# ")) for t in tokens if t.type == tokenize.COMMENT}


def patched_class(
    node:ast.FunctionDef,  # a function at the top of a module
) -> str:  # the class that it is a method of by fastcore's `patch`, "" for other functions
    "To which class a function is added."
    patched = any(n.id == "patch" for d in node.decorator_list for n in ast.walk(d) if isinstance(n, ast.Name))
    return ast.unparse(node.args.args[0].annotation) if patched else ""


class Docments(griffe.Extension):
    "Parameters, results and fields described by the comments beside them, and patched methods in their classes."
    def __init__(self): self.patched = []

    def on_function_instance(self, *, node, func, agent, **kwargs):
        "Describe parameters and result; remember the function if it belongs to a class."
        if not isinstance(node, ast.FunctionDef): return
        beside, a = comments(func.filepath), node.args
        args = [p for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if p and p.arg not in ("self", "cls")]
        described = [(p, beside[p.lineno]) for p in args if p.lineno in beside]
        sections = [griffe.DocstringSectionText(ast.get_docstring(node) or "")]
        if described:
            annotation = {p.name: p.annotation for p in func.parameters}
            named = [griffe.DocstringParameter(p.arg, description=text, annotation=annotation.get(p.arg)) for p, text in described]
            sections.append(griffe.DocstringSectionParameters(named))
        end = max(range(node.lineno, node.body[0].lineno), default=node.lineno, key=lambda i: i if i in beside else 0)
        if end in beside and end not in {p.lineno for p, _ in described}:
            sections.append(griffe.DocstringSectionReturns([griffe.DocstringReturn("", description=beside[end], annotation=func.returns)]))
        self._describe(func, sections)
        if owner := patched_class(node): self.patched.append((func, owner))

    def on_class_members(self, *, node, cls, agent, **kwargs):
        "Describe the fields of a dataclass."
        if not isinstance(node, ast.ClassDef): return
        beside = comments(cls.filepath)
        fields = [(n.target.id, n.end_lineno) for n in node.body if isinstance(n, ast.AnnAssign) and n.target.id[0] != "_"]
        fields = [(name, beside[i]) for name, i in fields if i in beside]
        named = [griffe.DocstringAttribute(name, description=text, annotation=cls[name].annotation) for name, text in fields]
        if named:
            self._describe(cls, [griffe.DocstringSectionText(ast.get_docstring(node) or ""), griffe.DocstringSectionAttributes(named)])

    def on_package(self, *, pkg, loader, **kwargs):
        "Move patched methods into their classes."
        for func, owner in self.patched:
            cls = func.module.members.get(owner)
            if func.module.members.get(func.name) is func: func.module.del_member(func.name)
            if cls is None or not cls.is_class: continue
            is_property = any("as_prop" in str(d.value) for d in func.decorators)
            as_property = griffe.Attribute(func.name, annotation=func.returns, docstring=func.docstring)
            cls.set_member(func.name, as_property if is_property else func)

    @staticmethod
    def _describe(obj, sections):
        if len(sections) == 1: return
        if obj.docstring is None: obj.docstring = griffe.Docstring("", parent=obj)
        obj.docstring.__dict__["parsed"] = [s for s in sections if s.value]
