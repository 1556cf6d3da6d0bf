"""Checked names as types of pydantic models and FastAPI parameters.

::

    class Load(BaseModel):
        model: RepoId
        revision: Revision = "main"

A name that is refused is an error of its field, and neither the name nor anything else that was
passed is in that error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from memweir.errors import IdentifierError
from memweir.identifiers import Kind, check_identifier

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

__all__ = ["Arg", "Identifier", "Label", "PathName", "RepoId", "Revision", "Variant"]


class Identifier:
    """The annotation behind the types here: ``Annotated[str, Identifier("repo")]``.

    Arguments are those of :func:`~memweir.check_identifier`.
    """

    __slots__ = ("kind", "max_len")

    def __init__(self, kind: Kind = "repo", *, max_len: int | None = None) -> None:
        self.kind: Kind = kind
        self.max_len = max_len

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        # An error shows the input of the validator that raised it, and that is never the name.
        return core_schema.no_info_before_validator_function(
            self._judged,
            core_schema.no_info_plain_validator_function(
                _passed, serialization=core_schema.to_string_ser_schema()
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        limit = {} if self.max_len is None else {"maxLength": self.max_len}
        return {"type": "string", "description": f"a clean {self.kind}", **limit}

    def _judged(self, value: Any) -> str | _Refusal:
        if not isinstance(value, str):
            return _Refusal("type", "a name is a string")
        try:
            return check_identifier(value, kind=self.kind, max_len=self.max_len)
        except IdentifierError as error:
            return _Refusal(error.code, str(error))

    def __repr__(self) -> str:
        return f"Identifier({self.kind!r})"


class _Refusal(str):
    """What stands in an error where the input would."""

    __slots__ = ("code", "told")

    code: str
    told: str

    def __new__(cls, code: str, told: str) -> _Refusal:
        self = super().__new__(cls, "[not shown]")
        self.code, self.told = code, told
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Refusal, (self.code, self.told)


def _passed(value: str) -> str:
    if isinstance(value, _Refusal):
        raise PydanticCustomError("identifier", "{told}", {"told": value.told, "code": value.code})
    return value


RepoId: TypeAlias = Annotated[str, Identifier("repo")]
Revision: TypeAlias = Annotated[str, Identifier("revision")]
Variant: TypeAlias = Annotated[str, Identifier("variant")]
PathName: TypeAlias = Annotated[str, Identifier("path")]
Label: TypeAlias = Annotated[str, Identifier("label")]
Arg: TypeAlias = Annotated[str, Identifier("arg")]
