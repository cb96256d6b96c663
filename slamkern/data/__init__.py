"""Text in, token batches out; nothing here knows models, kernels or statistics."""
