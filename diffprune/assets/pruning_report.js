"use strict";
(() => {
  const D = JSON.parse(document.getElementById("data").textContent), $ = id => document.getElementById(id);
  const unpack = (text, Type) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Type(bytes.buffer);
  };
  const n = D.n, kept = unpack(D.kept, Uint8Array), label = unpack(D.label, Int32Array), cluster = unpack(D.cluster, Int32Array);
  const score = unpack(D.score, Float32Array), reason = unpack(D.reason, Int32Array), copyOf = unpack(D.copy_of, Int32Array);
  const folder = unpack(D.folder, Int32Array), xs = D.x ? unpack(D.x, Uint16Array) : null, ys = D.y ? unpack(D.y, Uint16Array) : null;
  const thumbOf = new Int32Array(n).fill(-1);
  unpack(D.thumb_at, Int32Array).forEach((i, k) => { thumbOf[i] = k; });
  const named = D.names.length === n;
  const name = i => named ? D.folders[folder[i]] + D.names[i] : "image " + (i + 1);
  const source = i => "data:image/webp;base64," + D.thumbs[thumbOf[i]];
  const fate = i => kept[i] ? "kept" : "pruned", comma = v => v.toLocaleString("en");
  const make = (tag, props, ...children) => { const e = Object.assign(document.createElement(tag), props); e.append(...children); return e; };

  // What is known of an image, as pairs of a term and a text.
  const facts = i => {
    const out = [["name", name(i)], ["fate", fate(i) + (D.reasons[reason[i]] ? ": " + D.reasons[reason[i]] : "")]];
    if (label[i] >= 0) out.push(["class", D.labels[label[i]]]);
    if (cluster[i] >= 0) out.push(["cluster", String(cluster[i])]);
    if (!Number.isNaN(score[i])) out.push(["score", String(Number(score[i].toPrecision(5)))]);
    return out;
  };
  const list = i => { const dl = make("dl", {}); for (const [t, d] of facts(i)) dl.append(make("dt", { textContent: t }), make("dd", { textContent: d, dir: "auto" })); return dl; };
  const picture = i => thumbOf[i] >= 0 ? make("img", { src: source(i), alt: "" }) : make("p", { className: "quiet", textContent: "Its picture is not in this file." });

  // The image that is held, shown beside the map and marked wherever it stands.
  let held = -1;
  const hold = i => {
    held = i;
    document.querySelectorAll(".im").forEach(b => b.setAttribute("aria-pressed", String(Number(b.dataset.i) === i)));
    const box = $("held"), parts = [picture(i), list(i)];
    if (copyOf[i] >= 0) parts.push(make("p", {}, make("button", { type: "button", textContent: "The image that stays in its place", onclick: () => hold(copyOf[i]) })));
    box.replaceChildren(...parts);
    draw();
  };
  const button = (i, caption) => {
    const b = make("button", { type: "button", className: "im " + fate(i), title: name(i), onclick: () => hold(i) });
    b.dataset.i = i;
    b.setAttribute("aria-label", [name(i), fate(i), caption].filter(Boolean).join(", "));
    b.setAttribute("aria-pressed", String(i === held));
    b.append(thumbOf[i] >= 0 ? make("img", { src: source(i), alt: "" }) : make("span", { className: "none", textContent: name(i).split("/").pop().slice(-24) }));
    b.append(make("span", { className: "mark", textContent: kept[i] ? "✓" : "✕" }));
    if (caption) b.append(make("span", { className: "cap", textContent: caption }));
    return b;
  };
  for (const strip of document.querySelectorAll("[data-strip]")) {
    const s = D.strips[strip.dataset.strip] || { at: [], captions: [] };
    strip.setAttribute("role", "group");
    strip.append(...s.at.map((i, k) => button(i, s.captions[k] || "")));
  }

  // Filter.
  const fill = (id, values, text) => {
    const box = $(id);
    for (const v of values.slice(0, 1000)) box.append(make("option", { value: String(v), textContent: text(v) }));
    if (!values.length) $(id.replace("f-", "l-")).hidden = true;
  };
  const present = column => [...new Set(column)].filter(v => v >= 0).sort((a, b) => a - b);
  fill("f-label", present(label), v => D.labels[v]);
  fill("f-cluster", present(cluster), v => String(v));
  fill("f-reason", present(reason).filter(v => D.reasons[v]), v => D.reasons[v]);
  if (!named) { $("l-name").hidden = true; $("save").hidden = true; }
  let match = new Uint8Array(n).fill(1), shownImages = [], page = 0;
  const PAGE = 60;
  const apply = () => {
    const want = { kept: $("f-kept").value, label: $("f-label").value, cluster: $("f-cluster").value, reason: $("f-reason").value };
    const text = $("f-name").value.toLocaleLowerCase(), of = [[kept, want.kept], [label, want.label], [cluster, want.cluster], [reason, want.reason]]
      .filter(([, v]) => v !== "").map(([column, v]) => [column, Number(v)]);
    let total = 0, stay = 0;
    shownImages = [];
    for (let i = 0; i < n; i++) {
      const ok = of.every(([column, v]) => column[i] === v) && (!text || name(i).toLocaleLowerCase().includes(text));
      match[i] = ok ? 1 : 0;
      if (!ok) continue;
      total++; stay += kept[i];
      if (thumbOf[i] >= 0) shownImages.push(i);
    }
    const part = D.total > n ? ` in this file, which has ${comma(n)} of the ${comma(D.total)} images` : ` of ${comma(n)} images`;
    $("count").textContent = `${comma(total)}${part}: ${comma(stay)} kept, ${comma(total - stay)} pruned; ${comma(shownImages.length)} with a picture.`;
    $("save").disabled = !total;
    page = 0;
    $("gallery").replaceChildren();
    more();
    draw();
  };
  const more = () => {
    $("gallery").append(...shownImages.slice(page * PAGE, ++page * PAGE).map(i => button(i, "")));
    $("more").hidden = page * PAGE >= shownImages.length;
    if (!shownImages.length) $("gallery").replaceChildren(make("p", { className: "quiet", textContent: "None of these images has a picture in this file." }));
  };
  $("gallery").setAttribute("role", "group");
  $("more").onclick = more;
  $("filter").addEventListener("input", apply);
  $("filter").addEventListener("submit", e => e.preventDefault());
  $("filter").addEventListener("reset", () => setTimeout(apply));
  $("save").onclick = () => {
    const rows = ["id"];
    for (let i = 0; i < n; i++) if (match[i]) rows.push('"' + name(i).replaceAll('"', '""') + '"');
    const url = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], { type: "text/csv" }));
    make("a", { href: url, download: "images.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };

  // Tables sorted by any column.
  for (const table of document.querySelectorAll("table.sortable")) table.querySelectorAll("thead button").forEach((b, k) => b.onclick = () => {
    const th = b.parentElement, down = th.getAttribute("aria-sort") !== "descending", body = table.tBodies[0];
    const key = row => { const c = row.cells[k], text = c.textContent.trim(), v = parseFloat(c.dataset.v ?? text.replaceAll(",", "").replace("−", "-")); return k && !Number.isNaN(v) ? v : text; };
    const rows = [...body.rows].map(r => [key(r), r]);
    rows.sort(([a], [b]) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true })) * (down ? -1 : 1));
    table.querySelectorAll("th[aria-sort]").forEach(t => t.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows.map(([, r]) => r));
  });

  // The map. Points are drawn in a shuffled order, so that neither fate covers the other.
  const canvas = $("canvas"), tip = $("tip"), view = { k: 1, x: 0.5, y: 0.5 };  // zoom, and the place in the middle
  const order = xs ? Array.from({ length: n }, (_, i) => i).sort((a, b) => (a * 2654435761 >>> 0) - (b * 2654435761 >>> 0)) : [];
  const MARGIN = 14;
  let cursor = -1, pending = false;
  const size = () => ({ w: canvas.clientWidth, h: canvas.clientHeight });
  const place = i => { const { w, h } = size(); return [((xs[i] / 65535 - view.x) * view.k + 0.5) * (w - 2 * MARGIN) + MARGIN, ((ys[i] / 65535 - view.y) * view.k + 0.5) * (h - 2 * MARGIN) + MARGIN]; };
  const paint = () => {
    pending = false;
    const { w, h } = size(), ratio = window.devicePixelRatio || 1, c = canvas.getContext("2d"), css = getComputedStyle(document.documentElement);
    const colours = [css.getPropertyValue("--pruned"), css.getPropertyValue("--kept")], faint = css.getPropertyValue("--faint");
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) { canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio); }
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, w, h);
    const small = n > 20000 ? 1.2 : n > 3000 ? 1.8 : 2.6, grow = Math.min(2, Math.sqrt(view.k));
    for (const pass of [0, 1]) for (const i of order) {
      if (match[i] !== pass) continue;
      const [x, y] = place(i);
      if (x < -5 || y < -5 || x > w + 5 || y > h + 5) continue;
      c.fillStyle = pass ? colours[kept[i]] : faint;
      const r = (pass && thumbOf[i] >= 0 ? small + 0.9 : small) * grow;
      if (r < 2) c.fillRect(x - r, y - r, 2 * r, 2 * r);
      else { c.beginPath(); c.arc(x, y, r, 0, 6.3); c.fill(); }
    }
    for (const [i, r] of [[held, 9], [cursor, 7]]) if (i >= 0) {
      const [x, y] = place(i);
      c.strokeStyle = css.getPropertyValue("--fg"); c.lineWidth = 2.5;
      c.beginPath(); c.arc(x, y, r, 0, 6.3); c.stroke();
    }
  };
  const draw = () => { if (xs && !pending) { pending = true; requestAnimationFrame(paint); } };
  if (!xs) { apply(); return; }

  const nearest = (x, y, reach) => {  // one that has a picture, if it is near enough
    let best = -1, least = reach * reach;
    for (const pictured of [true, false]) {
      for (let i = 0; i < n; i++) {
        if (!match[i] || pictured !== thumbOf[i] >= 0) continue;
        const [px, py] = place(i), d = (px - x) ** 2 + (py - y) ** 2;
        if (d < least) { least = d; best = i; }
      }
      if (best >= 0) return best;
    }
    return -1;
  };
  const point = i => {
    if (i === cursor && !tip.hidden) return;
    cursor = i;
    tip.hidden = i < 0;
    if (i >= 0) {
      tip.replaceChildren(picture(i), list(i));
      const [x, y] = place(i), { w } = size();
      tip.style.left = Math.max(0, Math.min(x + 14, w - tip.offsetWidth - 4)) + "px";
      tip.style.top = (y + 14 + tip.offsetHeight > canvas.clientHeight && y > tip.offsetHeight ? y - tip.offsetHeight - 12 : y + 14) + "px";
    }
    draw();
  };
  const clamp = () => { const half = 0.5 / view.k; for (const a of ["x", "y"]) view[a] = Math.max(half, Math.min(1 - half, view[a])); };
  const zoom = (factor, x, y) => {  // keeps the place under (x, y) where it is
    const { w, h } = size(), ax = ((x ?? w / 2) - MARGIN) / (w - 2 * MARGIN) - 0.5, ay = ((y ?? h / 2) - MARGIN) / (h - 2 * MARGIN) - 0.5;
    const k = Math.max(1, Math.min(60, view.k * factor));
    view.x += ax / view.k - ax / k; view.y += ay / view.k - ay / k; view.k = k;
    clamp(); point(-1); draw();
  };
  const at = e => { const b = canvas.getBoundingClientRect(); return [e.clientX - b.left - canvas.clientLeft, e.clientY - b.top - canvas.clientTop]; };
  let down = null;
  canvas.addEventListener("pointerdown", e => { down = { from: at(e), x: view.x, y: view.y, moved: false }; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointermove", e => {
    const [x, y] = at(e);
    if (!down) { point(nearest(x, y, 12)); return; }
    const dx = x - down.from[0], dy = y - down.from[1], { w, h } = size();
    if (Math.hypot(dx, dy) > 4) down.moved = true;
    if (!down.moved) return;
    view.x = down.x - dx / (w - 2 * MARGIN) / view.k; view.y = down.y - dy / (h - 2 * MARGIN) / view.k;
    clamp(); point(-1); draw();
  });
  canvas.addEventListener("pointerup", e => { const d = down; down = null; if (d && !d.moved) { const i = nearest(...at(e), 14); if (i >= 0) { point(i); hold(i); } } });
  canvas.addEventListener("pointercancel", () => { down = null; });
  canvas.addEventListener("pointerleave", () => { if (!down) point(-1); });
  canvas.addEventListener("dblclick", e => zoom(2, ...at(e)));
  canvas.addEventListener("wheel", e => { if (e.ctrlKey || e.metaKey) { e.preventDefault(); zoom(e.deltaY < 0 ? 1.3 : 1 / 1.3, ...at(e)); } }, { passive: false });
  const go = (ux, uy) => {  // the nearest image in a direction, or the first one in the middle
    const { w, h } = size(), [x, y] = cursor >= 0 ? place(cursor) : [w / 2, h / 2];
    let best = -1, least = Infinity;
    for (let i = 0; i < n; i++) {
      if (!match[i] || i === cursor) continue;
      const [px, py] = place(i), dx = px - x, dy = py - y, along = dx * ux + dy * uy, aside = Math.abs(dx * uy - dy * ux);
      if (px < 0 || py < 0 || px > w || py > h || cursor >= 0 && along <= 0.01) continue;
      const d = cursor >= 0 ? along + 3 * aside : Math.hypot(dx, dy);
      if (d < least) { least = d; best = i; }
    }
    if (best >= 0) point(best);
  };
  const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", e => {
    if (KEYS[e.key]) go(...KEYS[e.key]);
    else if ((e.key === "Enter" || e.key === " ") && cursor >= 0) hold(cursor);
    else if (e.key === "+" || e.key === "=") zoom(1.5);
    else if (e.key === "-") zoom(1 / 1.5);
    else if (e.key === "Escape") point(-1);
    else return;
    e.preventDefault();
  });
  canvas.addEventListener("blur", () => point(-1));
  $("in").onclick = () => zoom(1.5);
  $("out").onclick = () => zoom(1 / 1.5);
  $("whole").onclick = () => { Object.assign(view, { k: 1, x: 0.5, y: 0.5 }); point(-1); draw(); };
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  apply();
})();
