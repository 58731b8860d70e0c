"""The video transformer that motion targets train; it consumes `mme_targets`.

Only the command line stands here yet; the model and its training are to come.
"""
