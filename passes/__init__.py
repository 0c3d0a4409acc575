"""Passes over the joint graph: read it into a problem, rewrite it to a plan."""

if __name__ != "recut.passes":
    # A second import under the bare name would make a second copy of every class.
    raise ImportError("`passes` has no name outside recut: import recut.passes")
