"""Planning: what to save, what to recompute and when, in plain values, without torch."""

if __name__ != "recut.partitioners":
    # A second import under the bare name would make a second copy of every class.
    raise ImportError("`partitioners` has no name outside recut: import recut.partitioners")
