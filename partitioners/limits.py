"""Up to where Inductor evaluates a value anew in the kernels that read it.

As torch._inductor.config has it.
"""

# realize_reads_threshold: more distinct reads than this, and a value with several readers becomes a
# buffer.
MAX_SOURCES = 4
# realize_cpu_acc_reads_threshold (8 on other devices): more distinct reads than this, and any value
# becomes a buffer.
MAX_ALL_SOURCES = 12
# Ops that Inductor evaluates anew for several readers (realize_opcount_threshold is 30 inner calls,
# of which an FX op takes two to three).
MAX_WEIGHT = 12
