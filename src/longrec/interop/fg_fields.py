"""Table of all supported keys of a feature generator's fg.json, with the status of each.

The reader, its notes and the table in the documentation all use ``FG_FIELDS``. The facts are those of the public
documentation of EasyRec and TorchEasyRec. A key that is not listed is noted with the nearest name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from longrec.interop.easyrec_fields import Status

_STATUSES: dict[str, Status] = {"=": "carried", "~": "differs", "-": "not carried"}

_ENCODED = """
  hash_bucket_size         int          =  hash; the hash function is another one
  vocab_list               texts        =  vocab
  vocab_file               text         =  vocab
  vocab_dict               map          ~  its keys are the vocab, each with an id of its own
  num_buckets              int          ~  the values are learned from the training rows
  default_bucketize_value  int          -  a value outside the vocabulary has an id of its own
  embedding_dim            int          =  dim
  embedding_dimension      int          =  dim
  filter_freq              int          -  min_count is for learned vocabularies only
  steps_to_live            int          -  a table keeps all its rows
  max_partitions           int          -  tables are not split over servers
"""
_NUMBERS = """
  boundaries               numbers      =  edges
  bucketize_boundaries     numbers      =  edges
  normalizer               text         ~  zscore and minmax are fitted on the training rows; log10 is scale: log
  normalizer_fn            text         ~  log1p is scale: log; other functions are not carried
"""
_EVERY = """
  feature_name             text         =  the feature's name
  feature_type             text         =  kind
  default_value            any          ~  missing of a number; elsewhere a null counts as missing
  value_type               text         -  the rows define the type of a column
  value_dimension          int          =  width of a number, default 1
  value_dim                int          =  width of a number, default 1; of an id 0 is several values
  separator                text         =  separator; default multi_val_sep of the file, else chr(29)
  need_prefix              bool         -  a feature has ids of its own, so that they need no prefix
  group                    text         -  the model's settings name groups
  is_multi                 bool         =  kind multi_id
  is_cache                 bool         -  of EasyRec's server
  stub_type                bool         =  true: only other features use it, so it is left out
  shared_name              text         =  share: features of one name share ids and table
"""

TABLE = f"""
the file
  features                 any          =  the features
  reserves                 texts        =  the label is the only column of it that nothing else reads
  label_fields             texts        =  the first is the label
  embedding_dim            int          =  dim of features without one of their own
  multi_val_sep            text         =  the separator of several values in a cell
  separator                text         -  of the generator's sparse tables; LongRec reads one column per feature
  kv_separator             text         =  weight_separator of multi-value features
  model_dir                text         -  the schema holds no model
  num_steps                int          -  the schema holds no model
  model_type               text         -  the schema holds no model
  model_path               text         -  the schema holds no model
  edit_config_json         any          -  the schema holds no model
id_feature
{_EVERY}{_ENCODED}
  expression               text         =  column; the prefix before the colon is its side
  combiner                 text         =  pool of several values; default sum
  weighted                 bool         =  weight_separator ":"
  kv_separator             text         =  weight_separator
  extra_combo_info         any          =  a cross
raw_feature
{_EVERY}{_NUMBERS}
  expression               text         =  column; the prefix before the colon is its side
  combiner                 text         -  numbers are not pooled
  embedding_dim            int          =  dim
  embedding_dimension      int          =  dim
combo_feature
{_EVERY}{_ENCODED}
  expression               texts        =  features; one column alone is an id
  combiner                 text         -  a cross takes one value per column
lookup_feature
{_EVERY}{_ENCODED}{_NUMBERS}
  map                      text         =  map
  key                      text         =  key; one key per row
  combiner                 text         -  a row has one key
  needDiscrete             bool         =  as: id; false is as: numeric or, with boundaries, bucketized; default true
  need_discrete            bool         =  the same
  needKey                  bool         ~  the value alone is looked up, its key is not part of the id
  need_key                 bool         ~  the value alone is looked up, its key is not part of the id
  needWeighting            bool         -  a value looked up is an id or a number, not an id with a weight
  expression               any          -  map and key name the columns
match_feature
{_EVERY}{_ENCODED}{_NUMBERS}
  user                     text         =  map, a map of maps such as a^x:1,y:2|b^z:3
  category                 text         =  outer_key; ALL searches all maps
  item                     text         =  key
  matchType                text         =  hit; multihit matches many values and is not carried
  combiner                 text         -  a row has one key
  needDiscrete             bool         =  as: id; false is as: numeric or, with boundaries, bucketized; default true
  need_discrete            bool         =  the same
  needWeighting            bool         -  a value looked up is an id or a number, not an id with a weight
  show_category            bool         ~  the value alone is looked up, its keys are not part of the id
  show_item                bool         ~  the value alone is looked up, its keys are not part of the id
sequence
  sequence_name            text         =  the history's name
  sequence_column          text         =  the packed column; default sequence_name
  sequence_length          int          =  max_length
  sequence_delim           text         =  packed: step
  attribute_delim          text         =  packed: feature; default #
  sequence_table           text         -  the row holds the features of a step
  sequence_pk              text         -  a request holds all features of a step
  default_value            any          -  a step without a value counts as missing
  features                 any          =  features: those of the candidate that read the same column
  group                    text         -  the model's settings name groups
"""

OTHERS: dict[str, str] = {
    "expr_feature": "expressions are not computed; make the column in the rows",
    "overlap_feature": "texts are not compared; make the column in the rows",
    "tokenize_feature": "texts are not cut into words; write the words as a column with a separator",
    "text_normalizer": "texts are taken as they are; normalize them in the rows",
    "regex_replace_feature": "texts are taken as they are; change them in the rows",
    "bm25_feature": "texts are not compared; make the column in the rows",
    "kv_dot_product": "maps are not multiplied; make the column in the rows",
    "combine_feature": "values are not mapped to numbers; make the column in the rows",
    "bool_mask_feature": "values are not masked; make the column in the rows",
    "slice_feature": "values are not cut; make the column in the rows",
    "custom_feature": "it is code of your own; make the column in the rows",
}
"""Types of features that are documented and not carried, each with its reason."""

_ROW = re.compile(r"(?P<name>\w+) +(?P<type>\w+) +(?P<status>[=~-]) +(?P<explanation>.+)")


@dataclass(frozen=True)
class FgField:
    """One key of one kind of entry.

    Attributes:
        kind: ``the file``, a ``feature_type``, or ``sequence``.
        name: the key.
        type: ``text``, ``int``, ``bool``, ``texts``, ``numbers``, ``map`` or ``any``.
        status: as of an EasyRec field.
        words: where it goes, what differs, or why it is not carried.
    """

    kind: str
    name: str
    type: str
    status: Status
    explanation: str


def _parse_table(text: str) -> tuple[FgField, ...]:
    fields, kind = [], ""
    for line in filter(str.strip, text.splitlines()):
        if not line.startswith(" "):
            kind = line.strip()
            continue
        row = _ROW.fullmatch(line.strip())
        assert row is not None, f"not a row of the table: {line}"
        fields.append(FgField(kind, row["name"], row["type"], _STATUSES[row["status"]], row["explanation"]))
    return tuple(fields)


FG_FIELDS = _parse_table(TABLE)
KINDS: dict[str, dict[str, FgField]] = {}
for _field in FG_FIELDS:
    KINDS.setdefault(_field.kind, {})[_field.name] = _field
