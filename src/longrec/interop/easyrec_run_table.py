"""Table of the fields of data, training and evaluation, parsed by ``easyrec_fields``.

Unindented lines are names of messages. The lines below them are their fields: name, type (``*`` may be repeated,
``@group`` excludes the others of the group), status (``=`` converted exactly, ``~`` converted with changes, ``-`` not
converted, ``!`` refused) and explanation.
"""

TABLE = """
EasyRecConfig
  train_input_path         text@train   =  data.log.splits.train; commas part several files, and globs work
  parquet_train_input      text@train   =  data.log.splits.train, read as Parquet
  kafka_train_input        any@train    !  a stream; LongRec trains on files: write some of it to CSV or Parquet
  datahub_train_input      any@train    !  a stream; LongRec trains on files: write some of it to CSV or Parquet
  hive_train_input         any@train    !  a table of a cluster; write it to CSV or Parquet files
  binary_train_input       any@train    !  a binary form of its own; write the rows to CSV or Parquet files
  eval_input_path          text@eval    =  data.log.splits.test, or .valid when the best weights are kept
  parquet_eval_input       text@eval    =  as eval_input_path, read as Parquet
  kafka_eval_input         any@eval     !  a stream; LongRec measures on files: write some of it to CSV or Parquet
  datahub_eval_input       any@eval     !  a stream; LongRec measures on files: write some of it to CSV or Parquet
  hive_eval_input          any@eval     !  a table of a cluster; write it to CSV or Parquet files
  binary_eval_input        any@eval     !  a binary form of its own; write the rows to CSV or Parquet files
  model_dir                text         ~  its last component names the run, which goes to the folder of runs (fit.runs)
  train_config             TrainConfig  =
  eval_config              EvalConfig   =
  data_config              DatasetConfig =
  feature_configs          FeatureConfig* =
  feature_config           FeatureConfigV2 =
  model_config             EasyRecModel =
  export_config            ExportConfig =
  fg_json_path             text         -  import it on its own (longrec import fg.json --into FOLDER)
TrainConfig
  optimizer_config         Optimizer*   =  fit.optimizer, fit.embedding_optimizer and their learning rates
  gradient_clipping_by_norm float       =  fit.clip_norm
  num_steps                int          =  fit.max_steps; 0 is no limit
  fine_tune_checkpoint     text         -  a TensorFlow checkpoint; start from a run of LongRec with fit.init_from
  fine_tune_ckpt_var_map   text         -  names variables of a TensorFlow checkpoint
  sync_replicas            bool         -  training runs in one process
  sparse_accumulator_type  text         -  training runs in one process
  startup_delay_steps      float        -  training runs in one process
  save_checkpoints_steps   int          =  fit.checkpoint_steps
  save_checkpoints_secs    int          =  fit.checkpoint_seconds
  keep_checkpoint_max      int          -  a run keeps one checkpoint to resume from, and its best weights
  save_summary_steps       int          -  metrics are written with every training line (fit.log_steps)
  log_step_count_steps     int          =  fit.log_steps
  is_profiling             bool         -  profile from outside; there is no switch
  force_restore_shape_compatible bool   -  weights of another shape are refused
  train_distribute         enum:DistributionStrategy -  training runs in one process
  num_gpus_per_worker      int          -  training runs on one device
  summary_model_vars       bool         -  weights are not written to TensorBoard
  protocol                 text         -  training runs in one process
  inter_op_parallelism_threads int      -  of TensorFlow's runtime; fit.threads is torch's
  intra_op_parallelism_threads int      ~  fit.threads, when above 0
  tensor_fuse              bool         -  of TensorFlow's runtime
  write_graph              bool         -  there is no graph to write
  freeze_gradient          text*        !  some variables would not be trained, named by TensorFlow's names
  incr_save_config         any          -  a checkpoint is written whole
  enable_oss_stop_signal   bool         -  stop a run with an interrupt, go on with longrec train --resume RUN
  dead_line                text         -  stop a run with an interrupt, go on with longrec train --resume RUN
Optimizer
  adam_optimizer           AdamOptimizer@optimizer  ~  fit.optimizer: adam; tables by lazy_adam: only rows of the batch
  adamw_optimizer          AdamWOptimizer@optimizer ~  fit.optimizer: adamw; tables by lazy_adam, without decay
  lazy_adam_optimizer      AdamOptimizer@optimizer  =  fit.optimizer: adam, fit.embedding_optimizer: lazy_adam
  adam_async_optimizer     AdamOptimizer@optimizer  ~  as adam_optimizer: training runs in one process
  adam_asyncw_optimizer    AdamWOptimizer@optimizer ~  as adamw_optimizer: training runs in one process
  adagrad_optimizer        AdagradOptimizer@optimizer =  fit.optimizer: adagrad, fit.embedding_optimizer: adagrad
  momentum_optimizer       MomentumOptimizer@optimizer =  fit.optimizer, fit.embedding_optimizer: sgd, with fit.momentum
  momentumw_optimizer      MomentumWOptimizer@optimizer ~  as momentum_optimizer; the decay is part of the gradient
  rms_prop_optimizer       any@optimizer !  there is no RMSProp; write adam_optimizer or adagrad_optimizer
  ftrl_optimizer           FtrlOptimizer@optimizer ~  of a wide part, which then follows the tables; alone refused
  use_moving_average       bool         -  weights are not averaged
  moving_average_decay     float        -  weights are not averaged
  embedding_learning_rate_multiplier float =  fit.embedding_lr is that many times fit.lr
AdamOptimizer
  learning_rate            LearningRate =
  beta1                    float        =  fit.betas
  beta2                    float        =  fit.betas
AdamWOptimizer
  learning_rate            LearningRate =
  weight_decay             float        ~  fit.weight_decay: of the dense matrices, not of biases, norms and tables
  beta1                    float        =  fit.betas
  beta2                    float        =  fit.betas
AdagradOptimizer
  learning_rate            LearningRate =
  initial_accumulator_value float       =  fit.initial_accumulator_value
MomentumOptimizer
  learning_rate            LearningRate =
  momentum_optimizer_value float        =  fit.momentum
MomentumWOptimizer
  learning_rate            LearningRate =
  weight_decay             float        ~  fit.weight_decay: of the dense matrices, not of biases, norms and tables
  momentum_optimizer_value float        =  fit.momentum
FtrlOptimizer
  learning_rate            LearningRate -  the wide part follows the tables' optimizer
  learning_rate_power      float        -  there is no FTRL
  initial_accumulator_value float       -  there is no FTRL
  l1_reg                   float        -  there is no FTRL
  l2_reg                   float        -  there is no FTRL
  l2_shrinkage_reg         float        -  there is no FTRL
LearningRate
  constant_learning_rate   ConstantLearningRate@rate =  fit.lr
  exponential_decay_learning_rate ExponentialDecayLearningRate@rate =  fit.lr and fit.schedule: exponential
  manual_step_learning_rate ManualStepLearningRate@rate =  fit.lr and fit.schedule: step
  cosine_decay_learning_rate CosineDecayLearningRate@rate =  fit.lr and fit.schedule: cosine
  poly_decay_learning_rate PolyDecayLearningRate@rate =  fit.lr and fit.schedule: polynomial
  transformer_learning_rate TransformerLearningRate@rate =  fit.lr and fit.schedule: transformer
ConstantLearningRate
  learning_rate            float        =  fit.lr
ExponentialDecayLearningRate
  initial_learning_rate    float        =  fit.lr
  decay_steps              int          =  fit.schedule.steps
  decay_factor             float        =  fit.schedule.factor
  staircase                bool         =  fit.schedule.staircase
  burnin_learning_rate     float        =  fit.warmup_from; 0 keeps the full rate
  burnin_steps             int          =  fit.schedule.hold and fit.warmup_steps
  min_learning_rate        float        =  fit.schedule.floor
ManualStepLearningRate
  initial_learning_rate    float        =  fit.lr
  schedule                 LearningRateSchedule* =  fit.schedule.at and fit.schedule.rates
  warmup                   bool         =  fit.schedule.ramp
LearningRateSchedule
  step                     int          =  fit.schedule.at
  learning_rate            float        =  fit.schedule.rates
CosineDecayLearningRate
  learning_rate_base       float        =  fit.lr
  total_steps              int          =  fit.schedule.steps
  warmup_learning_rate     float        =  fit.warmup_from
  warmup_steps             int          =  fit.warmup_steps
  hold_base_rate_steps     int          =  fit.schedule.hold
PolyDecayLearningRate
  learning_rate_base       float        =  fit.lr
  total_steps              int          =  fit.schedule.steps
  power                    float        =  fit.schedule.power
  end_learning_rate        float        =  fit.schedule.floor
TransformerLearningRate
  learning_rate_base       float        =  fit.lr
  hidden_size              int          =  fit.schedule.width
  warmup_steps             int          =  fit.schedule.warmup
  step_scaling_rate        float        =  fit.schedule.scale
EvalConfig
  num_examples             int          -  all rows of a split are measured
  eval_interval_secs       int          -  valid is measured at shares of a pass (fit.val_checks_per_epoch)
  max_evals                int          -  valid is measured at shares of a pass (fit.val_checks_per_epoch)
  save_graph               bool         -  there is no graph to write
  metrics_set              EvalMetrics* =  evaluate measures AUC, GAUC, log loss and more, always
  eval_online              bool         -  training rows are not measured
EvalMetrics
  auc                      AUC@metric   =  auc
  gauc                     GAUC@metric  =  gauc
  session_auc              SessionAUC@metric -  make the session the user of the schema, then gauc is AUC by session
  max_f1                   any@metric   -  evaluate measures no thresholds
  accuracy                 any@metric   -  evaluate measures no thresholds
  precision                any@metric   -  evaluate measures no thresholds
  recall                   any@metric   -  evaluate measures no thresholds
  recall_at_topk           TopK@metric  -  a metric of retrieval; rankers are measured by auc, gauc and log loss
  precision_at_topk        TopK@metric  -  a metric of retrieval; rankers are measured by auc, gauc and log loss
  mean_absolute_error      any@metric   -  a metric of regression; log loss and calibration replace it
  mean_squared_error       any@metric   -  a metric of regression; log loss and calibration replace it
  root_mean_squared_error  any@metric   -  a metric of regression; log loss and calibration replace it
AUC
  num_thresholds           int          -  AUC is exact, by ranks
GAUC
  uid_field                text         =  the user of the schema by default
  reduction                text         ~  gauc weighs users by their rows (mean_by_sample_num)
SessionAUC
  session_id_field         text         -  make the session the user of the schema, then gauc is AUC by session
  reduction                text         -  gauc weighs users by their rows (mean_by_sample_num)
TopK
  topk                     int          -  a metric of retrieval
ExportConfig
  batch_size               int          -  a bundle takes any number of candidates
  exporter_type            text         ~  best: the eval rows become valid and choose the weights; else the last
  best_exporter_metric     text         =  fit.monitor: auc, gauc or log_loss
  metric_bigger            bool         =  must fit the metric
  enable_early_stop        bool         ~  the eval rows become valid; fit.patience decides when to stop
  early_stop_func          text         -  code of your own; fit.patience replaces it
  early_stop_params        text         -  of early_stop_func
  max_check_steps          int          ~  steps without a better metric; fit.patience counts validations instead
  multi_placeholder        bool         -  a bundle has one input per feature
  exports_to_keep          int          -  longrec export writes one bundle per call
  multi_value_fields       any          -  the schema names the features with several values
  auto_multi_value         bool         -  the schema names the features with several values
  placeholder_named_by_input bool       -  a request names columns
  filter_inputs            bool         -  a bundle's inputs are those the model reads
  export_features          bool         -  a bundle returns scores
  export_rtp_outputs       bool         -  a bundle returns scores
  asset_files              text*        -  a bundle contains its vocabularies
DatasetConfig
  batch_size               int          =  fit.batch_size
  auto_expand_input_fields bool         =  name[1-3] is name1, name2, name3
  label_fields             text*        =  the label: the one in label_name, else the first; one per tower
  label_sep                text*        !  labels of several numbers
  label_dim                int*         =  must be 1
  extra_label_func         any*         !  code of your own that makes labels; make them in the rows
  shuffle                  bool         ~  training draws its batches at random, always
  shuffle_buffer_size      int          -  training draws its batches at random from all rows
  num_epochs               int          =  fit.epochs; 0 goes on until num_steps
  prefetch_size            int          -  of TensorFlow's input pipeline
  shard                    bool         -  training runs in one process
  file_shard               bool         -  training runs in one process
  input_type               enum:InputType =  CSV and Parquet are read; other kinds are refused
  separator                text         =  data.log.rows.separator
  num_parallel_calls       int          -  of TensorFlow's input pipeline; data.threads is DuckDB's
  selected_cols            text         -  only for tables of MaxCompute
  selected_col_types       text         -  only for tables of MaxCompute
  input_fields             InputField*  =  data.log.rows.columns, in order
  rtp_separator            text         -  only for RTPInput
  ignore_error             bool         ~  a row that cannot be read is an error, always
  pai_worker_queue         bool         -  only for tables of MaxCompute
  pai_worker_slice_num     int          -  only for tables of MaxCompute
  chief_redundant          bool         -  training runs in one process
  sample_weight            text         ~  fit.sample_weight; the loss is over the weights of a batch, not over its rows
  data_compression_type    text         -  only for TFRecord
  n_data_batch_tfrecord    int          -  only for TFRecord
  with_header              bool         =  data.log.rows.header
  feature_fields           text*        -  the features name their columns
  negative_sampler         any@sampler  !  samples items that were not shown, for retrieval models
  negative_sampler_v2      any@sampler  !  samples items that were not shown, for retrieval models
  hard_negative_sampler    any@sampler  !  samples items that were not shown, for retrieval models
  hard_negative_sampler_v2 any@sampler  !  samples items that were not shown, for retrieval models
  negative_sampler_in_memory any@sampler !  samples items that were not shown, for retrieval models
  eval_batch_size          int          =  evaluate.batch_size
  drop_remainder           bool         ~  the last, smaller batch of a pass is trained on
InputField
  input_name               text         =  a column
  input_type               enum:FieldType =  int, float or text; BOOL is read as text
  default_val              text         =  data.log.rows.defaults
  input_dim                int          ~  a feature's raw_input_dim is the count of numbers in a cell
  input_shape              int          -  a feature defines the content of its cell
  user_define_fn           text         !  code of your own that changes a column; make the column in the rows
  user_define_fn_path      text         !  code of your own that changes a column; make the column in the rows
  user_define_fn_res_type  enum:FieldType !  code of your own that changes a column; make the column in the rows
  ignore_val               text         -  a value that counts as none; leave the cell empty
"""
