"""The profile of a training step: slamkern against the usual ways to take one."""
