"""slamkern inside other trainers: packed attention by name, a callback, a check of the first batch, LoRA.

Not here: transformers' own kernel route. ``model.set_use_kernels(True)`` (``use_kernels=True``, ``kernelize``) replaces
the forward of classes that transformers marks with ``use_kernel_forward_from_hub``. Up to 5.17 no FFN that patch_model
fuses is marked, so a registered kernel would take norms alone, and ``model.set_use_kernels(False)`` only clears a flag
and leaves the replaced forwards in place. patch_model takes both and can be undone; of a module that was kernelized
before, explain says whose forward it has. A test shows both facts and fails when transformers changes them.
"""
