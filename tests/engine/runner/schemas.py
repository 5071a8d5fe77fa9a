"""Random JSON schemas whose answers are not long."""

import random
from typing import Any

Schema = dict[str, Any]
PATTERNS = [r"^[A-Z]{2}-\d{4,6}$", r"^(red|green)( light)?$", r"^\w{1,3}@[a-z]{2,4}\.org$"]
NAMES = ["name", "count", "größe", "x y", "a/b", 'q"']
VALUES = ["red", "größe ✓", "", 3, -1.5, True, None, ["a", 1], {"k": 'quo"te\\'}]


class SchemaMaker:
    """Makes one schema after the other; the seed decides them all."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._definitions: Schema = {}

    def make(self) -> Schema:
        self._definitions = {}
        schema = self._any(depth=3)
        return {**schema, "$defs": self._definitions} if self._definitions else schema

    def _any(self, depth: int) -> Schema:
        leaves = [self._string, self._integer, self._number, self._enum, self._simple]
        nested = [self._array, self._object, self._object, self._any_of, self._reference]
        kind = self._random.randrange(10 if depth else 5)
        return nested[kind - 5](depth - 1) if kind >= 5 else leaves[kind]()

    def _string(self) -> Schema:
        if self._random.random() < 0.2:
            return {"type": "string", "pattern": self._random.choice(PATTERNS)}
        least = self._random.randint(0, 4)
        most = least + self._random.randint(0, 9)
        return {"type": "string", "minLength": least, "maxLength": most}

    def _integer(self) -> Schema:
        least = self._random.randint(-1000, 1000)
        schema = {"type": "integer", "minimum": least, "maximum": least + 500}
        if self._random.random() < 0.3:
            schema["multipleOf"] = self._random.choice([2, 5, 7])
        return schema

    def _number(self) -> Schema:
        if self._random.random() < 0.5:
            return {"type": "number"}
        low = round(self._random.uniform(-9, 9), 3)
        return {"type": "number", "exclusiveMinimum": low, "maximum": low + 3.5}

    def _enum(self) -> Schema:
        return {"enum": self._random.sample(VALUES, self._random.randint(1, 5))}

    def _simple(self) -> Schema:
        options: list[Any] = ["boolean", "null", ["boolean", "null"], ["integer", "null"]]
        return {"type": self._random.choice(options)}

    def _array(self, depth: int) -> Schema:
        least = self._random.randint(0, 2)
        schema = {"type": "array", "items": self._any(depth), "minItems": least}
        schema["maxItems"] = least + self._random.randint(0, 2)
        if least == 2:
            schema["prefixItems"] = [self._any(depth)]
        return schema

    def _object(self, depth: int) -> Schema:
        names = self._random.sample(NAMES, self._random.randint(0, 4))
        return {
            "type": "object",
            "properties": {name: self._any(depth) for name in names},
            "required": [name for name in names if self._random.random() < 0.5],
            "additionalProperties": False,
        }

    def _any_of(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth), self._any(depth)]}

    def _reference(self, depth: int) -> Schema:
        name = f"part{len(self._definitions)}"
        self._definitions[name] = self._string() if depth else self._integer()
        return {"$ref": f"#/$defs/{name}"}
