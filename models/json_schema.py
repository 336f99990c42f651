"""Grammars of the JSON that a schema describes (JSON Schema, in part), as llama.cpp makes them.

Supported are `type` (one or several), `properties`, `required`, `additionalProperties`, `items`,
`prefixItems`, `minItems`, `maxItems`, `minLength`, `maxLength`, `format` (date, time, date-time,
uuid), `enum`, `const`, `anyOf`, `oneOf` and `$ref` into the schema itself. What else would narrow
the values is refused; notes such as `title` are passed over. Properties come in the order of the
schema, the required ones first, and no others unless `additionalProperties` allows them; all of
`prefixItems` must be there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from yupana.graphlib.errors import DataError

_NOTES: Final = {
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
    "examples", "deprecated", "readOnly", "writeOnly",
}  # fmt: skip
_TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_OF_TYPES: Final = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "format"},
}
_SHARED: Final = r"""
ws      ::= | " " | "\n"{1,2} [ \t]{0,20}
char    ::= [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4})
string  ::= "\"" char* "\""
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number  ::= integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?
boolean ::= "true" | "false"
null    ::= "null"
object  ::= "{" ws (pair ("," ws pair)*)? "}"
array   ::= "[" ws (value ws ("," ws value ws)*)? "]"
pair    ::= string ws ":" ws value ws
value   ::= object | array | string | number | boolean | null
date    ::= [0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])
time    ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{3})? zone
zone    ::= "Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]
hex     ::= [0-9a-fA-F]
uuid    ::= hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}
"""
_FORMATS: Final = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}


def schema_grammar(schema: Any) -> str:
    r"""A grammar, in GBNF, of the JSON that a schema describes.

    Args:
        schema: as `json.loads` gives it.
    Raises:
        DataError: it is no schema, or says what no grammar is made of.

    >>> sizes = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    >>> print(*schema_grammar(sizes).splitlines()[:2], sep="\n")
    root ::= ws s0 ws
    s0 ::= "{" ws "\"n\"" ws ":" ws integer ws "}"
    """
    rules = _Rules(schema)
    start = rules.of(schema, "#")
    return f"root ::= ws {start} ws\n" + "".join(rules.lines) + _SHARED


class _Rules:
    """Rules of the parts of a schema, each made once."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._of_references: dict[str, str] = {}
        self._count = 0
        self.lines: list[str] = []

    def of(self, schema: Any, place: str) -> str:
        """What stands for a part of the schema in a rule."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise DataError(f"json schema: {place}: got {schema!r}, want an object or true.")
        if "$ref" in schema:
            self._check(schema, place, {"$ref"})
            return self._reference(schema["$ref"], place)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                self._check(schema, place, {name})
                parts = self._list(schema[name], f"{place}/{name}")
                return self._choice(
                    [self.of(x, f"{place}/{name}/{k}") for k, x in enumerate(parts)]
                )
        if "enum" in schema or "const" in schema:
            self._check(schema, place, {"enum", "const", "type"})
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return self._choice([_literal(x) for x in self._list(values, f"{place}/enum")])
        types = schema.get("type", _implied(schema))
        types = [types] if isinstance(types, str) else self._list(types, f"{place}/type")
        for kind in types:
            if kind not in _TYPES:
                raise DataError(
                    f"json schema: {place}/type: got {kind!r}, want one of {', '.join(_TYPES)}."
                )
        known = {"type"}.union(*(_OF_TYPES.get(kind, set()) for kind in types))
        self._check(schema, place, known)
        make = {"object": self._object, "array": self._array, "string": self._string}
        return self._choice([make[kind](schema, place) if kind in make else kind for kind in types])

    def _rule(self, body: str) -> str:
        name = f"s{self._count}"
        self._count += 1
        self.lines.append(f"{name} ::= {body}\n")
        return name

    def _choice(self, parts: Sequence[str]) -> str:
        return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"

    def _check(self, schema: Mapping[str, Any], place: str, known: set[str]) -> None:
        more = [name for name in schema if name not in known and name not in _NOTES]
        if more:
            raise DataError(
                f"json schema: {place}: got {', '.join(map(repr, more))}, want only what a grammar "
                f"can be made of here: {', '.join(sorted(known))}."
            )

    def _list(self, values: Any, place: str) -> Sequence[Any]:
        if not isinstance(values, list) or not values:
            raise DataError(f"json schema: {place}: got {values!r}, want a list, not empty.")
        return values

    def _reference(self, reference: Any, place: str) -> str:
        if reference not in self._of_references:
            target = self._schema
            parts = str(reference).removeprefix("#").split("/")[1:]
            for part in parts:
                key = part.replace("~1", "/").replace("~0", "~")
                if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                    target = target[int(key)]
                elif isinstance(target, Mapping) and key in target:
                    target = target[key]
                else:
                    target = None
                    break
            if target is None or not str(reference).startswith("#"):
                raise DataError(
                    f"json schema: {place}/$ref: got {reference!r}, want a place in this schema, "
                    "as #/$defs/NAME."
                )
            name = self._of_references[reference] = f"r{len(self._of_references)}"
            self.lines.append(f"{name} ::= {self.of(target, reference)}\n")
        return self._of_references[reference]

    def _object(self, schema: Mapping[str, Any], place: str) -> str:
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", "properties" not in schema)
        required = schema.get("required", [])
        if not isinstance(properties, Mapping) or not set(required) <= set(properties):
            raise DataError(
                f"json schema: {place}: got properties {[*properties]} and required {required}, "
                "want an object, and a list of some of its names."
            )
        pairs = {
            name: f'{_literal(name)} ws ":" ws {self.of(part, f"{place}/properties/{name}")} ws'
            for name, part in properties.items()
        }
        first = [pair for name, pair in pairs.items() if name in required]
        optional = [pair for name, pair in pairs.items() if name not in required]
        repeated = None
        if others is not False:
            value = self.of(others, f"{place}/additionalProperties")
            repeated = self._rule(f'string ws ":" ws {value} ws')
        body = ' "," ws '.join(first)
        if first:
            body += _further(optional, repeated)
        else:
            starts = [
                pair + _further(optional[k + 1 :], repeated) for k, pair in enumerate(optional)
            ]
            starts += [repeated + _further([], repeated)] if repeated else []
            body = f"({' | '.join(starts)})?" if starts else ""
        return self._rule(f'"{{" ws {body} "}}"')

    def _array(self, schema: Mapping[str, Any], place: str) -> str:
        first = [
            self.of(part, f"{place}/prefixItems/{k}") + " ws"
            for k, part in enumerate(schema.get("prefixItems", []))
        ]
        least, most = self._bounds(schema, place, "minItems", "maxItems")
        rest, start = schema.get("items", not first), ' "," ws '.join(first)
        if rest is False or (most is not None and most <= len(first)):
            self._require(least <= len(first), f"{place}/minItems", least, f"at most {len(first)}")
            return self._rule(f'"[" ws {start} "]"')
        item = self.of(rest, f"{place}/items") + " ws"
        if first:
            bounds = max(least - len(first), 0), "" if most is None else most - len(first)
            return self._rule(f'"[" ws {start} ("," ws {item}){{{bounds[0]},{bounds[1]}}} "]"')
        upper = "" if most is None else most - 1
        some = f'{item} ("," ws {item}){{{max(least - 1, 0)},{upper}}}'
        return self._rule(f'"[" ws {some if least else f"({some})?"} "]"')

    def _string(self, schema: Mapping[str, Any], place: str) -> str:
        if "format" in schema:
            kind, rule = schema["format"], f"one of {[*_FORMATS]}"
            self._require(kind in _FORMATS, f"{place}/format", kind, rule)
            return self._rule(rf'"\"" {_FORMATS[kind]} "\""')
        least, most = self._bounds(schema, place, "minLength", "maxLength")
        if not least and most is None:
            return "string"
        return self._rule(rf'"\"" char{{{least},{"" if most is None else most}}} "\""')

    def _bounds(
        self, schema: Mapping[str, Any], place: str, low: str, high: str
    ) -> tuple[int, int | None]:
        least, most = schema.get(low, 0), schema.get(high)
        for name, value in ((low, least), (high, most)):
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            is_right, rule = is_count or value is None, "a whole number from 0"
            self._require(is_right, f"{place}/{name}", value, rule)
        is_right, rule = most is None or least <= most, f"at least {low} {least}"
        self._require(is_right, f"{place}/{high}", most, rule)
        return least, most

    def _require(self, is_right: bool, place: str, value: Any, rule: str) -> None:
        if not is_right:
            raise DataError(f"json schema: {place}: got {value!r}, want {rule}.")


def _implied(schema: Mapping[str, Any]) -> Any:
    """The types of a schema that does not say: those whose words it uses."""
    found = [kind for kind, words in _OF_TYPES.items() if words & schema.keys()]
    return found or list(_TYPES)


def _further(optional: Sequence[str], repeated: str | None) -> str:
    """What may follow the first pair of an object."""
    parts = "".join(f' ("," ws {pair})?' for pair in optional)
    return parts + (f' ("," ws {repeated})*' if repeated else "")


def _literal(value: Any) -> str:
    """A value written out, as a text of a grammar."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
