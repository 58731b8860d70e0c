"""The video transformer that motion targets train; it consumes `mme_targets`.

One job a file: `pretrain`, `finetune`, `probe`, `evaluate`, `convert`, `reconstruct`; the model is
in `vit`, `masking`, `mme` (and `mvit`), and `checkpoints` opens what was trained. Nothing is
imported here, so that the command line starts at once.
"""
