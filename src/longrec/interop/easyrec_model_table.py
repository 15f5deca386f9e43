"""Table of the fields of features and models, parsed by ``easyrec_fields``. ``easyrec_run_table`` explains its form."""

TABLE = """
FeatureConfigV2
  features                 FeatureConfig* =
  embedding_on_cpu         bool         -  the device is one for all
FeatureConfig
  feature_name             text         =  the feature's name
  input_names              text*        =  column; of a tag values and weights, of a lookup map and key
  feature_type             enum:FeatureType =  kind; ExprFeature and PassThroughFeature are not carried
  embedding_name           text         =  share: features of one name share ids and table
  embedding_dim            int          =  dim
  hash_bucket_size         int          =  hash; the hash function is another one
  num_buckets              int          ~  values are learned from the training rows; of a number equal buckets
  boundaries               float*       =  edges
  separator                text         =  separator
  kv_separator             text         =  weight_separator
  seq_multi_sep            text         -  a step of a sequence holds one value, a numeric feature one list of numbers
  max_seq_len              int          ~  max_length: the last events of a longer sequence are kept (there: the first)
  vocab_file               text         =  vocab
  vocab_list               text*        =  vocab
  shared_names             text*        =  a feature for each further column
  lookup_max_sel_elem_num  int          -  a lookup takes one value
  max_partitions           int          -  tables are not split over servers
  combiner                 text         ~  pool: sum, mean or max; sqrtn becomes mean
  initializer              any          -  tables start as the model says (model.init_std)
  precision                int          -  numbers of an id feature are compared as they are written in the file
  min_val                  float        ~  with max_val: scale minmax, fitted on the training rows
  max_val                  float        ~  with min_val: scale minmax, fitted on the training rows
  normalizer_fn            text         ~  log1p is scale: log; other functions are refused
  raw_input_dim            int          =  width
  sequence_combiner        any          ~  a sequence outside attention is pooled by mean
  sub_feature_type         enum:FeatureType =  what a step of a sequence is: IdFeature or RawFeature with boundaries
  sequence_length          int          -  sequences are ragged
  expression               text         -  expressions are not computed; make the column in the rows
  ev_params                any          -  a table has as many rows as values or buckets
  combo_join_sep           text         ~  a cross joins values with a separator of its own
  combo_input_seps         text*        -  a cross takes one value per column
FeatureGroupConfig
  group_name               text         =  the name of a tower
  feature_names            text*        =  the features of the tower; name[1-3] is name1, name2, name3
  wide_deep                enum:WideOrDeep =  the component of a model that reads the group
  sequence_features        SeqAttGroupConfig* =  attention inside the tower
  negative_sampler         bool         =  must be false
SeqAttGroupConfig
  group_name               text         =  the name of a history
  seq_att_map              SeqAttMap*   =  the history: features and columns
  tf_summary               bool         -  the run's report shows attention
  seq_dnn                  DNN          =  the attention's MLP
  allow_key_search         bool         =  the attention takes any feature as its key
  need_key_feature         bool         =  model: key of the attention tower
  allow_key_transform      bool         ~  a key and its sequence share one table, so their widths agree
  transform_dnn            bool         ~  a key and its sequence share one table, so their widths agree
SeqAttMap
  key                      text*        =  features: the candidate's features
  hist_seq                 text*        =  columns: the sequence that belongs to each key
  aux_hist_seq             text*        -  a column of a history needs a matching feature of the candidate
EasyRecModel
  model_class              text         =  model.name
  model_name               text         -  a name for people
  feature_groups           FeatureGroupConfig* =
  model_params             any@model    !  a model built of components (backbone) has no counterpart
  dummy                    any@model    !  a model for tests of the input
  wide_and_deep            WideAndDeep@model =
  deepfm                   DeepFM@model =
  multi_tower              MultiTower@model =
  fm                       FM@model     =
  dcn                      DCN@model    =
  autoint                  any@model    !  not in this version
  dlrm                     any@model    !  not in this version
  cmbf                     any@model    !  not in this version
  uniter                   any@model    !  not in this version
  multi_tower_recall       any@model    !  not in this version
  dssm                     any@model    !  not converted
  mind                     any@model    !  not converted
  dropoutnet               any@model    !  not in this version
  metric_learning          any@model    !  not in this version
  pdn                      any@model    !  not in this version
  dssm_senet               any@model    !  not in this version
  dat                      any@model    !  not in this version
  mmoe                     MMoE@model =
  esmm                     ESMM@model =
  dbmtl                    DBMTL@model =
  simple_multi_task        SimpleMultiTask@model =
  ple                      PLE@model =
  rocket_launching         any@model    !  not in this version
  seq_att_groups           SeqAttGroupConfig* =  histories, each with an attention tower
  embedding_regularization float        ~  fit.l2: of the rows of the tables that a batch touches, once each
  loss_type                enum:LossType =  CLASSIFICATION and the two names of cross entropy; others are refused
  num_class                int          =  must be 1
  ev_params                any          -  a table has as many rows as values or buckets
  kd                       any*         !  distillation from another model
  restore_filters          text*        -  of TensorFlow checkpoints
  variational_dropout      any          -  selects features; compare runs without a feature instead
  losses                   Loss*        ~  one of cross entropy; others are refused
  loss_weight_strategy     enum:LossWeightStrategy -  weights of losses are the towers'
  backbone                 any          !  a model built of components has no counterpart
  label_name               text         =  the label among label_fields, of a model of one task
Loss
  loss_type                enum:LossType =  must be cross entropy
  weight                   float        -  there is one loss; of a task it is a factor of the tower's weight
  loss_name                text         -  there is one loss
  learn_loss_weight        bool         -  there is one loss
  f1_reweighted_loss       any@loss     !  of another loss
  softmax_loss             any@loss     !  of another loss
  circle_loss              any@loss     !  of another loss
  multi_simi_loss          any@loss     !  of another loss
  binary_focal_loss        any@loss     !  of another loss
  pairwise_loss            any@loss     !  of another loss
  pairwise_focal_loss      any@loss     !  of another loss
  pairwise_logistic_loss   any@loss     !  of another loss
DNN
  hidden_units             int*         =  hidden units
  dropout_ratio            float*       =  dropout
  activation               text         =  activation
  use_bn                   bool         =  batch_norm
Tower
  input                    text         =  a feature group
  dnn                      DNN          =
DINTower
  input                    text         =  an attention group
  dnn                      DNN          =  the attention's MLP
BSTTower
  input                    text         !  a tower of BST has no counterpart; the model bst is one by itself
  seq_len                  int          !  a tower of BST has no counterpart; the model bst is one by itself
  multi_head_size          int          !  a tower of BST has no counterpart; the model bst is one by itself
MultiTower
  towers                   Tower*       =  model.towers
  final_dnn                DNN          =  model.final
  l2_regularization        float        ~  fit.weight_decay, of all dense matrices
  din_towers               DINTower*    =  model.din
  bst_towers               BSTTower*    !  a tower of BST has no counterpart; the model bst is one by itself
WideAndDeep
  wide_output_dim          int          ~  the wide part gives one number
  dnn                      DNN          =  the deep part
  final_dnn                DNN          -  wide and deep logits are added
  l2_regularization        float        ~  fit.weight_decay, of all dense matrices
DeepFM
  dnn                      DNN          =  the deep part
  final_dnn                DNN          -  both logits are added
  wide_output_dim          int          ~  the wide part gives one number
  wide_regularization      float        -  deprecated there too
  dense_regularization     float        -  deprecated there too
  l2_regularization        float        ~  fit.weight_decay, of all dense matrices
DCN
  deep_tower               Tower        =  the deep part
  cross_tower              CrossTower   =  the cross part
  final_dnn                DNN          -  both outputs enter one linear layer
  l2_regularization        float        ~  fit.weight_decay, of all dense matrices
CrossTower
  input                    text         =  a feature group
  cross_num                int          =  model.cross_layers
MMoE
  experts                  ExpertTower* ~  all experts have the layers of the first
  expert_dnn               DNN          =  model.expert
  num_expert               int          =  model.experts
  task_towers              TaskTower*   =  tasks; the first is the schema's label
  l2_regularization        float        ~  fit.weight_decay, of all dense matrices
ExpertTower
  expert_name              text         -  experts have no names
  dnn                      DNN          =  model.expert
TaskTower BayesTaskTower
  tower_name               text         ~  a task has the name of its label
  label_name               text         =  the label of the task; else label_fields in order
  metrics_set              EvalMetrics* =  every task is measured by AUC, log loss and more, always
  loss_type                enum:LossType =  must be cross entropy
  num_class                int          =  must be 1
  dnn                      DNN          =  model.tower; all towers have the layers of the first
  weight                   float        =  tasks: the weight of the loss; of the first model.label_weight
  task_space_indicator_label text       !  a task that learns from some of the rows
  task_space_indicator_name text        !  a task that learns from some of the rows
  task_space_indicator_value text       !  a task that learns from some of the rows
  in_task_space_weight     float        -  of task_space_indicator_label
  out_task_space_weight    float        -  of task_space_indicator_label
  losses                   Loss*        ~  one of cross entropy; others are refused
  use_sample_weight        bool         -  sample_weight weighs the loss of every task
BayesTaskTower
  relation_tower_names     text*        !  a tower that reads another tower is not in this version
  relation_dnn             DNN          =  the last layers of model.tower
SimpleMultiTask
  task_towers              TaskTower*   =  tasks; the first is the schema's label
  l2_regularization        float        ~  fit.weight_decay, of all dense matrices
ESMM
  groups                   Tower*       =  model.base: one tower per group
  ctr_tower                TaskTower    =  model.click
  cvr_tower                TaskTower    =  the schema's label
  l2_regularization        float        ~  fit.weight_decay, of all dense matrices
PLE
  extraction_networks      ExtractionNetwork* =  model.levels; all have the experts of the first
  task_towers              TaskTower*   =  tasks; the first is the schema's label
  l2_regularization        float        ~  fit.weight_decay, of all dense matrices
ExtractionNetwork
  network_name             text         -  levels have no names
  expert_num_per_task      int          =  model.own
  share_num                int          =  model.experts
  task_expert_net          DNN          =  model.expert
  share_expert_net         DNN          ~  all experts have the layers of a task's
DBMTL
  bottom_cmbf              any          !  CMBF is not in this version
  bottom_uniter            any          !  Uniter is not in this version
  bottom_dnn               DNN          =  model.mlp; under experts model.base
  expert_dnn               DNN          =  model.expert
  num_expert               int          =  model.experts
  task_towers              BayesTaskTower* =  tasks; the first is the schema's label
  l2_regularization        float        ~  fit.weight_decay, of all dense matrices
  use_feature_bn           bool         -  inputs of the bottom are not normalized
  sequence_dnn             DNN          -  a layer over pooled sequences
FM
  use_variant              bool         -  of the components; the plain model has no variant
  l2_regularization        float        ~  fit.weight_decay, of all dense matrices
"""
