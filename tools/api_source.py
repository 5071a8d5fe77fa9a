"""What the reference needs to know of a module, read from its text: nothing is imported.

inspect would not do: fields are explained by comments, and importing the engine takes torch.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ENGINE = Path(__file__).parents[1] / "engine"
PACKAGE = "vlmflow_engine"
_SPECIAL = ("__init__", "__call__")
_MAX_SIGNATURE = 92  # characters on one line


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a dataclass, or a class variable."""

    name: str
    kind: str
    default: str | None  # None: it must be given
    meaning: str
    group: str = ""  # what is said of it and its neighbours together

    @property
    def is_explained(self) -> bool:
        # Class variables are explained by the docstring of their class.
        return bool(self.meaning or self.group) or self.kind.startswith("ClassVar")


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    signature: str
    docstring: str
    is_property: bool = False
    is_classmethod: bool = False


@dataclass(frozen=True, slots=True)
class Definition:
    """A public name and all that is public of it."""

    name: str
    module: str
    docstring: str
    signature: str = ""  # of a function
    value: str = ""  # of a constant
    bases: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()
    methods: tuple[Function, ...] = ()

    @property
    def undocumented(self) -> list[str]:
        """Names of what nobody has explained."""
        missing = [] if self.docstring else [self.name]
        missing += [f"{self.name}.{f.name}" for f in self.fields if not f.is_explained]
        return missing + [f"{self.name}.{m.name}" for m in self.methods if not m.docstring]


@dataclass
class Module:
    """A module's text, taken apart."""

    name: str
    text: str = field(init=False)

    def __post_init__(self) -> None:
        path = ENGINE.joinpath(*self.name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.text = path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""

    @property
    def public(self) -> list[str]:
        """The names of `__all__`; without one, all classes and constants."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and _target(node) == "__all__":
                return [str(name) for name in ast.literal_eval(node.value)]
        names = [n.name for n in self.tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
        names += [_target(node) for node in self.tree.body if isinstance(node, ast.Assign)]
        return [name for name in names if not name.startswith("_")]

    def find(self, name: str) -> Definition:
        """Follow a name to where it is defined. Raises KeyError."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return Module(str(node.module)).find(alias.name)
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return self._class(node)
            if isinstance(node, ast.FunctionDef) and node.name == name:
                function = _function(node)
                return Definition(name, self.name, function.docstring, function.signature)
            if isinstance(node, ast.Assign) and _target(node) == name:
                comment = self._comment(node)
                return Definition(name, self.name, comment, value=ast.unparse(node.value))
        raise KeyError(f"{self.name} has no {name}")

    def _class(self, node: ast.ClassDef) -> Definition:
        functions = [
            _function(item)
            for item in node.body
            if isinstance(item, ast.FunctionDef) and _is_public(item)
        ]
        return Definition(
            node.name,
            self.name,
            ast.get_docstring(node) or "",
            bases=tuple(ast.unparse(base) for base in node.bases),
            fields=tuple(self._fields(node)),
            methods=tuple(functions),
        )

    def _fields(self, node: ast.ClassDef) -> Iterator[Field]:
        is_dataclass = any("dataclass" in ast.unparse(item) for item in node.decorator_list)
        for item in node.body:
            if isinstance(item, ast.Assign) and _target(item):
                yield Field(_target(item), "ClassVar", _default(item.value), self._comment(item))
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            kind = ast.unparse(item.annotation)
            if is_dataclass or kind.startswith("ClassVar"):
                meaning, group = self._comment(item), self._group(item, node)
                yield Field(item.target.id, kind, _default(item.value), meaning, group)

    @cached_property
    def _comments(self) -> dict[int, str]:
        """By line: what stands behind a `#`."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return {
            token.start[0]: token.string.removeprefix("#").strip()
            for token in tokens
            if token.type == tokenize.COMMENT
        }

    def _comment(self, node: ast.stmt) -> str:
        """What is said behind a statement; else on the lines right above it."""
        if behind := self._comments.get(node.end_lineno or node.lineno):
            return behind
        return self._above(node.lineno - 1)

    def _above(self, line: int) -> str:
        """The comment whose last line this is; empty if code stands there."""
        lines = self.text.splitlines()
        said: list[str] = []
        while line > 0 and lines[line - 1].lstrip().startswith("#"):
            said.insert(0, self._comments[line])
            line -= 1
        return " ".join(said)

    def _group(self, item: ast.stmt, node: ast.ClassDef) -> str:
        """The nearest comment above with an empty line below it: it is about all that follow."""
        lines = self.text.splitlines()
        for line in range(item.lineno - 1, node.lineno, -1):
            if not lines[line - 1].strip() and (said := self._above(line - 1)):
                return said
        return ""


def _target(node: ast.Assign) -> str:
    target = node.targets[0]
    return target.id if isinstance(target, ast.Name) else ""


def _default(value: ast.expr | None) -> str | None:
    if value is None:
        return None
    text = ast.unparse(value)
    factory = re.fullmatch(r"field\(default_factory=(\w+)\)", text)
    return {"list": "[]", "dict": "{}"}[factory[1]] if factory else text


def _is_public(node: ast.FunctionDef) -> bool:
    # What is inherited from nobody and has nothing to say, as __repr__, is not part of a reference.
    return not node.name.startswith("_") or (
        node.name in _SPECIAL and bool(ast.get_docstring(node))
    )


def _function(node: ast.FunctionDef) -> Function:
    decorators = {ast.unparse(item) for item in node.decorator_list}
    arguments = ast.unparse(node.args)
    arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
    arguments = re.sub(r": '([^']*)'", r": \1", arguments)
    returned = ast.unparse(node.returns).strip("'\"") if node.returns else ""
    arrow = f" -> {returned}" if returned and node.name != "__init__" else ""
    listed = [_spaced(item) for item in _split(arguments)]
    signature = f"({', '.join(listed)}){arrow}"
    if len(node.name) + len(signature) > _MAX_SIGNATURE:
        signature = "(\n" + "".join(f"    {item},\n" for item in listed) + f"){arrow}"
    docstring = ast.get_docstring(node) or ""
    return Function(
        node.name,
        signature,
        docstring,
        is_property="property" in decorators,
        is_classmethod="classmethod" in decorators,
    )


def _split(arguments: str) -> list[str]:
    """At the commas that are inside no bracket."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _spaced(argument: str) -> str:
    """With blanks around the `=` of a default, which unparse leaves out."""
    head, equals, default = argument.partition("=")
    return f"{head} = {default}" if equals and ":" in head else argument
