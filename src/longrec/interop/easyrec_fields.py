"""Table of all supported fields of EasyRec's pipeline configuration, with the status of each.

The reader, the notes of an import and the table in the documentation all use ``FIELDS``, so that the three cannot
disagree. The facts (names, types, which fields exclude each other) are those of EasyRec's public ``.proto`` files and
documentation. A field that is not listed is a fault of the configuration, reported with the nearest name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from longrec.interop import easyrec_model_table, easyrec_run_table

Status = Literal["carried", "differs", "not carried", "refused"]
_STATUSES: dict[str, Status] = {"=": "carried", "~": "differs", "-": "not carried", "!": "refused"}
SCALARS = ("text", "int", "float", "bool")


@dataclass(frozen=True)
class EasyRecField:
    """One field of one message.

    Attributes:
        message: EasyRec's name of the message that has the field.
        name: name of the field.
        type: ``text``, ``int``, ``float``, ``bool``, ``enum:NAME``, the name of a message, or ``any`` for a message
            whose fields are not read.
        repeated: True if it may occur several times.
        group: fields of one group exclude each other (a oneof). None for the others.
        status: ``carried`` (converted exactly), ``differs`` (converted with changes), ``not carried`` (not converted,
            with a note), or ``refused`` (the model would be another one without it, so the import stops).
        explanation: where it goes, what differs, or why it is not carried.
    """

    message: str
    name: str
    type: str
    repeated: bool
    group: str | None
    status: Status
    explanation: str


ENUMS: dict[str, tuple[str, ...]] = {
    "FieldType": ("INT32", "INT64", "STRING", "", "FLOAT", "DOUBLE", "BOOL"),
    "FeatureType": (
        "IdFeature", "RawFeature", "TagFeature", "ComboFeature", "LookupFeature", "SequenceFeature", "ExprFeature",
        "PassThroughFeature",
    ),
    "WideOrDeep": ("DEEP", "WIDE", "WIDE_AND_DEEP"),
    "LossWeightStrategy": ("Fixed", "Uncertainty", "Random"),
    "DistributionStrategy": (
        "NoStrategy", "PSStrategy", "MirroredStrategy", "CollectiveAllReduceStrategy", "ExascaleStrategy",
        "MultiWorkerMirroredStrategy", "HorovodStrategy", "SokStrategy", "EmbeddingParallelStrategy",
    ),
    "LossType": (
        "CLASSIFICATION", "L2_LOSS", "SIGMOID_L2_LOSS", "CROSS_ENTROPY_LOSS", "SOFTMAX_CROSS_ENTROPY", "CIRCLE_LOSS",
        "MULTI_SIMILARITY_LOSS", "SOFTMAX_CROSS_ENTROPY_WITH_NEGATIVE_MINING", "PAIR_WISE_LOSS", "F1_REWEIGHTED_LOSS",
        "BINARY_FOCAL_LOSS", "PAIRWISE_FOCAL_LOSS", "PAIRWISE_LOGISTIC_LOSS", "JRC_LOSS", "ORDER_CALIBRATE_LOSS",
        "BINARY_CROSS_ENTROPY_LOSS", "KL_DIVERGENCE_LOSS", "PAIRWISE_HINGE_LOSS", "LISTWISE_RANK_LOSS",
        "LISTWISE_DISTILL_LOSS", "ZILN_LOSS",
    ),
    "InputType": (
        "CSVInput", "CSVInputV2", "CSVInputEx", "ParquetInput", "ParquetInputV2", "ParquetInputV3", "HiveParquetInput",
        "OdpsInput", "OdpsInputV2", "OdpsInputV3", "DataHubInput", "RTPInput", "RTPInputV2", "OdpsRTPInput",
        "OdpsRTPInputV2", "TFRecordInput", "BatchTFRecordInput", "DummyInput", "KafkaInput", "HiveInput",
        "HiveRTPInput", "CriteoInput",
    ),
}  # fmt: skip
"""Names of enum values. Values of the enums in ``NUMBERED`` may be written as their index in the list."""

NUMBERED = ("FieldType", "FeatureType", "WideOrDeep", "LossWeightStrategy")

_ROW = re.compile(
    r"(?P<name>\w+) +(?P<type>[\w:]+)(?P<many>\*?)(?:@(?P<group>\w+))? +(?P<status>[=~!-])(?: +(?P<explanation>.*))?"
)


def _parse_table(text: str) -> tuple[EasyRecField, ...]:
    """Parse the rows of a table: unindented lines name messages, the indented lines below name their fields."""
    fields, messages = [], list[str]()
    for line in text.splitlines():
        if not line.startswith(" "):
            messages = line.split() or messages
            continue
        row = _ROW.fullmatch(line.strip())
        assert row is not None, f"not a row of the table: {line}"
        status, explanation = _STATUSES[row["status"]], row["explanation"] or ""
        assert explanation or status == "carried", f"a row without an explanation: {line}"
        own = row["name"], row["type"], bool(row["many"]), row["group"], status, explanation
        fields += [EasyRecField(message, *own) for message in messages]
    return tuple(fields)


FIELDS: tuple[EasyRecField, ...] = (*_parse_table(easyrec_run_table.TABLE), *_parse_table(easyrec_model_table.TABLE))
MESSAGES: dict[str, dict[str, EasyRecField]] = {}
for _field in FIELDS:
    MESSAGES.setdefault(_field.message, {})[_field.name] = _field
