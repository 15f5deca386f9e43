"""Programs of a service as models of the Open Inference Protocol: ``NAME.PROGRAM``, and ``NAME`` of an only program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longrec.errors import RequestError
from longrec.exporting.inputs import Input, ProgramFacts
from longrec.exporting.runtime import Program
from longrec.serve import open_inference
from longrec.serve.infer_messages import InferAnswer
from longrec.serve.open_model import OpenModel


@dataclass(frozen=True)
class _Served:
    version: str
    facts: ProgramFacts
    program: Program


class ServedPrograms:
    """Programs of the models of a service, by their names in the protocol."""

    def __init__(self, models: Sequence[OpenModel]) -> None:
        self._programs: dict[str, _Served] = {}
        self._listed: list[str] = []
        for model in models:
            manifest = model.bundle.manifest
            for name, program in model.programs.items():
                served = _Served(manifest.version, manifest.programs[name], program)
                self._programs.setdefault(f"{model.name}.{name}", served)
                if len(model.programs) == 1:
                    self._programs.setdefault(model.name, served)
                self._listed.append(model.name if len(model.programs) == 1 else f"{model.name}.{name}")

    @property
    def names(self) -> list[str]:
        """Names of the programs, each once."""
        return list(dict.fromkeys(self._listed))

    @property
    def versions(self) -> list[str]:
        """Versions of the programs, each once."""
        return list(dict.fromkeys(served.version for served in self._programs.values()))

    def check_name(self, name: str, version: str | None = None) -> None:
        """Check that a name is one of a program, and the version its own.

        Raises:
            RequestError: 404 if it is not.
        """
        if name not in self._programs:
            raise RequestError("model", f"the unknown model {name!r}", ", ".join(self._listed), status=404)
        served = self._programs[name].version
        if version is not None and version != served:
            raise RequestError("version", f"the unknown version {version!r} of {name}", served, status=404)

    def infer(self, name: str, body: bytes, version: str | None = None, json_length: str | None = None) -> InferAnswer:
        """Run a program on the tensors of a request.

        Args:
            version: version of the program. None for any.
            json_length: the header with the length of the JSON, for binary data behind it.

        Raises:
            RequestError: 404 if name or version is unknown, otherwise if the tensors do not fit the program.
        """
        self.check_name(name, version)
        served = self._programs[name]
        outputs = [entry.name for entry in served.facts.outputs]
        call = open_inference.decode_infer_request(body, served.facts.inputs, outputs, json_length)
        values = served.program.run_outputs(call.tensors, list(call.outputs))
        return open_inference.encode_infer_response(name, served.version, call.id, values, call.outputs)

    def metadata(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Return name, inputs and outputs of a program in the format of the protocol.

        Raises:
            RequestError: 404 if name or version is unknown.
        """
        self.check_name(name, version)
        served = self._programs[name]
        return open_inference.build_metadata(name, served.version, served.facts.inputs, served.facts.outputs)

    def inputs(self, name: str) -> Sequence[Input]:
        """Return the inputs of a program."""
        return self._programs[name].facts.inputs
