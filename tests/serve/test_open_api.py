"""The OpenAPI document, and the application against it: schemathesis sends what the document allows and what not."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from in_process import InProcess
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from longrec.serve.app import App
from longrec.serve.service import Service

CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance, content_type_conformance]
EXAMPLES = 6
QUICK = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, 1e39, "", "2026-01-31T12:00:00Z", [], {}, [[]], [None]]),
)


@pytest.fixture(scope="module")
def app(steps: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """An application of a copy of the bundle: requests change its catalog."""
    folder = tmp_path_factory.mktemp("served") / "bundle"
    service = Service(shutil.copytree(steps.bundle, folder))
    yield App(service)
    service.close()


@pytest.fixture(scope="module")
def document(app: App) -> Any:
    with InProcess(app) as http:
        return http.get("/openapi.json").json()


@pytest.fixture(scope="module")
def schema(app: App) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app.starlette())


def test_the_document_is_valid_and_has_every_route(app: App, document: Any) -> None:
    validate(document)
    assert document["openapi"] == "3.1.0"
    routes = {route.path: route.methods for route in app.starlette().routes if isinstance(route, Route)}
    methods = {
        path: {name.upper() for name in operations} - {"PARAMETERS"} for path, operations in document["paths"].items()
    }
    assert methods == {path: names - {"HEAD"} for path, names in routes.items() if names is not None}
    names = [operation["operationId"] for path in document["paths"].values() for operation in list_operations(path)]
    assert len(set(names)) == len(names)


def list_operations(path: Any) -> list[Any]:
    return [operation for name, operation in path.items() if name != "parameters"]


def test_every_operation_has_its_errors(document: Any) -> None:
    for path, operations in document["paths"].items():
        for operation in list_operations(operations):
            statuses = set(operation["responses"])
            assert {"200", "500", "503"} <= statuses
            assert ({"400", "404", "413", "415", "422"} <= statuses) is ("requestBody" in operation)
            kind = "Infer" if path.startswith("/v2") else ""
            assert operation["responses"]["503"]["$ref"].endswith(f"/{kind}503")
    for name in ("503", "Infer503"):
        assert "Retry-After" in document["components"]["responses"][name]["headers"]


def test_properties_are_described_by_the_docstrings(document: Any) -> None:
    schemas = document["components"]["schemas"]
    rank = schemas["RankRequest"]
    assert rank["description"] == "Request to rank candidates for a user."
    assert all(entry["description"] for entry in rank["properties"].values())
    assert rank["properties"]["user"]["description"].endswith("null for a schema without a user.")
    assert rank["properties"]["at"]["description"].endswith("Default now. Only earlier events are read.")
    same = [schemas["RecommendRequest"]["properties"][name]["description"] for name in ("user", "history")]
    assert same == ["as in `RankRequest`."] * 2
    assert set(schemas["ErrorFields"]["properties"]) == {"where", "found", "expected", "do"}
    assert "Attributes" not in str(schemas)
    assert "``" not in str(schemas)


def test_examples_fit_their_schemas_and_are_answered(app: App, schema: Any, document: Any) -> None:
    rank = document["paths"]["/rank"]["post"]["requestBody"]["content"]["application/json"]
    assert rank["example"] == app.service.example("/rank")
    for path, example in list_examples(document):
        name = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        Draft202012Validator({**document, "$ref": name}).validate(example)
        response = build_case(schema, path, example).call_and_validate(checks=CHECKS)
        assert response.status_code == 200


def list_examples(document: Any) -> list[tuple[str, Any]]:
    bodies = {
        path: operations["post"]["requestBody"]["content"]["application/json"]
        for path, operations in document["paths"].items()
        if "requestBody" in operations.get("post", {})
    }
    named = [(path, one["value"]) for path, body in bodies.items() for one in body.get("examples", {}).values()]
    examples = [*((path, body["example"]) for path, body in bodies.items() if "example" in body), *named]
    assert len(examples) == 3  # of /rank and of a program, with and without a version
    return examples


def build_case(schema: Any, path: str, body: Any) -> Any:
    parameters = {entry["name"]: entry["schema"]["enum"][0] for entry in schema.raw_schema["paths"][path]
                  .get("parameters", []) if entry["in"] == "path"}  # fmt: skip
    return schema[path]["POST"].Case(body=body, media_type="application/json", path_parameters=parameters)


def test_responses_are_as_documented(schema: Any) -> None:
    """Requests that the document allows, and requests that it forbids."""
    statuses: Counter[int] = Counter()
    labels = []
    for result in schema.get_all_operations():
        operation = result.ok()
        labels.append(operation.label)
        is_plain = not operation.path_parameters and not operation.body
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if is_plain and mode is GenerationMode.NEGATIVE:
                continue  # nothing in the request could be wrong

            @QUICK
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                statuses[case.call_and_validate(checks=CHECKS).status_code] += 1

            send()
    assert len(labels) >= 16
    assert {200, 400, 404, 422} <= set(statuses)


@pytest.mark.parametrize("path", ["/rank", "/v2/models/{name}/infer"])
def test_responses_to_changed_examples_are_as_documented(schema: Any, document: Any, path: str) -> None:
    """Random bodies hardly pass the first check. One or two changes of a valid one reach the checks behind it."""
    example = dict(list_examples(document))[path]
    statuses: Counter[int] = Counter()

    @settings(QUICK, max_examples=40)
    @given(data=st.data())
    def send(data: st.DataObject) -> None:
        body = example
        for _ in range(data.draw(st.integers(0, 2))):
            body = replace(body, data.draw(st.sampled_from(list(list_positions(body)))), data.draw(VALUES))
        statuses[build_case(schema, path, body).call_and_validate(checks=CHECKS).status_code] += 1

    send()
    assert {200, 422} <= set(statuses)


def list_positions(value: Any, position: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield position
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 3)) if isinstance(value, list) else ()
    for key in keys:
        yield from list_positions(value[key], (*position, key))


def replace(value: Any, position: tuple[Any, ...], new: Any) -> Any:
    if not position:
        return new
    value = copy.copy(value)
    value[position[0]] = replace(value[position[0]], position[1:], new)
    return value


# ---- planted faults ----------------------------------------------------------------------------------------------


def test_a_response_that_is_not_documented_is_reported(app: App, document: Any) -> None:
    def forget(planted: Any) -> None:
        answer = planted["components"]["schemas"]["RankResponse"]
        del answer["properties"]["at"]
        answer["required"].remove("at")

    example = app.service.example("/rank")
    for change, title in (
        (forget, "Response violates schema"),
        (lambda planted: planted["paths"]["/rank"]["post"]["responses"].pop("200"), "Undocumented status code"),
    ):
        planted = copy.deepcopy(document)
        change(planted)
        wrong = App(app.service)
        wrong.__dict__["_document"] = app.service, orjson.dumps(planted)
        schema = schemathesis.openapi.from_asgi("/openapi.json", wrong.starlette())
        with pytest.raises(FailureGroup) as caught:
            build_case(schema, "/rank", example).call_and_validate(checks=CHECKS)
        assert [fault.title for fault in caught.value.exceptions] == [title]
