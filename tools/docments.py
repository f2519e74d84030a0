import griffe
class Docments(griffe.Extension):
    pass
