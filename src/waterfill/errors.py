"""Every error the library raises on purpose. Each message gives what was expected, what was found and what to do."""


class WaterfillError(Exception):
    """Base class of every error that the library raises on purpose.

    Example:
        >>> try:
        ...     waterfill.compress(model, size=100)
        ... except waterfill.WaterfillError as error:
        ...     print(error)
    """


class CorruptFile(WaterfillError):
    """Bytes that are not what a writer of this format would have written: truncated, flipped or hostile."""


class NewerFormat(WaterfillError):
    """A format version, part kind or required feature that this release does not know."""


class BadInput(WaterfillError):
    """Weights, names, shapes or files that cannot be compressed as they are: NaN, a missing shard, a bad name ..."""


class BadRecipe(WaterfillError):
    """A recipe text or spec argument that has no meaning."""


class BudgetError(WaterfillError):
    """A budget that no choice of parts can meet."""


class VerifyError(WaterfillError):
    """A file that is whole but not what it was compared with."""


class Mismatch(WaterfillError):
    """Names or shapes of a compressed model and of the module it is installed into differ."""


class PlanMismatch(WaterfillError):
    """A work directory that belongs to another input, recipe or version."""


class OutputExists(WaterfillError):
    """The output path is taken and overwriting was not requested."""


class EngineError(WaterfillError):
    """Machines that cannot do the work: none answers, they see no file, they die of a weight, another version runs."""


class CannotExport(WaterfillError):
    """A part that a foreign format cannot hold."""
