"""Checked names in real pydantic models and FastAPI routes."""

from __future__ import annotations

import pickle
from typing import Annotated

import pytest

pydantic = pytest.importorskip("pydantic")

from memweir.integrations.pydantic import (  # noqa: E402
    Arg,
    Identifier,
    Label,
    PathName,
    RepoId,
    Revision,
    Variant,
)

TOKEN = "hf_" + "N0tToBeSeenN0tToBeSeenN0tToBeSeen0"


class Load(pydantic.BaseModel):
    model: RepoId
    revision: Revision = "main"
    variant: Variant | None = None
    file: PathName = "model.gguf"
    label: Label = "chat"
    extra: list[Arg] = pydantic.Field(default_factory=list)


def test_clean_names_are_taken_as_they_are():
    load = Load(model="Org/Model-1", revision="refs/pr/1", variant="Q4_K_M", extra=["--flag", ""])
    assert load.model == "Org/Model-1"
    assert type(load.model) is str
    again = Load.model_validate_json(load.model_dump_json())
    assert again == load
    assert pickle.loads(pickle.dumps(load)) == load


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("model", f"org/{TOKEN}", "secret"),
        ("model", "org/secret\x00", "control"),
        ("model", "../secret", "dots"),
        ("revision", "secret main", "character"),
        ("variant", "secret/../x", "character"),
        ("file", "a/../../secret", "dots"),
        ("label", "secret\u202egpj", "invisible"),
        ("extra", ["ok", "secret\n"], "control"),
        ("model", 7, "type"),
        ("model", b"secret", "type"),
        ("model", {"secret": TOKEN}, "type"),
    ],
)
def test_a_refused_name_is_not_in_the_error(field, value, code):
    with pytest.raises(pydantic.ValidationError) as caught:
        Load(**{"model": "org/model", field: value})
    (error,) = caught.value.errors()
    assert error["type"] == "identifier"
    assert error["ctx"]["code"] == code
    assert error["loc"][0] == field
    told = f"{caught.value} {caught.value!r} {caught.value.errors()} {caught.value.json()}"
    assert "secret" not in told.replace("'secret'", "").replace('"secret"', "")
    assert TOKEN not in told


def test_the_json_schema_says_string():
    schema = Load.model_json_schema()["properties"]
    assert schema["model"]["type"] == "string"
    adapter = pydantic.TypeAdapter(Annotated[str, Identifier("label", max_len=9)])
    assert adapter.json_schema()["maxLength"] == 9
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_python("longer than nine")


def test_fastapi_answers_without_the_name():
    fastapi = pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    app = fastapi.FastAPI()

    @app.post("/load")
    def load(body: Load) -> dict[str, str]:
        return {"model": body.model}

    client = TestClient(app)
    assert client.post("/load", json={"model": "org/model"}).json() == {"model": "org/model"}
    refused = client.post("/load", json={"model": f"org/{TOKEN}"})
    assert refused.status_code == 422
    assert TOKEN not in refused.text
    assert "access token" in refused.text
    assert client.get("/openapi.json").status_code == 200
