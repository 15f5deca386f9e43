"""Programs of a service as models of the Open Inference Protocol: ``NAME.PROGRAM``, and ``NAME`` of an only program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longrec.errors import RequestError
from longrec.exporting.inputs import ProgramFacts
from longrec.exporting.runtime import Program
from longrec.serve import open_inference
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

    def check_name(self, name: str) -> None:
        """Check that a name is one of a program.

        Raises:
            RequestError: 404 if it is not.
        """
        if name not in self._programs:
            raise RequestError("model", f"the unknown model {name!r}", ", ".join(self._listed), status=404)

    def infer(self, name: str, body: bytes) -> bytes:
        """Run a program on the tensors of a JSON request.

        Raises:
            RequestError: 404 if the name is unknown, otherwise if the tensors do not fit the program.
        """
        self.check_name(name)
        served = self._programs[name]
        output = served.facts.outputs[0].name
        identity, inputs = open_inference.decode_infer_request(body, served.facts.inputs, output)
        values = served.program.run(inputs)
        return open_inference.encode_infer_response(name, served.version, identity, values, output)

    def metadata(self, name: str) -> dict[str, Any]:
        """Return name, inputs and outputs of a program in the format of the protocol.

        Raises:
            RequestError: 404 if the name is unknown.
        """
        self.check_name(name)
        served = self._programs[name]
        return open_inference.build_metadata(name, served.version, served.facts.inputs, served.facts.outputs[:1])
