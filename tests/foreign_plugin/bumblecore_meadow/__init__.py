"""Four plugins that know BumbleCore by its public facade alone."""

from pydantic import Field

from bumblecore_core import DataFormatRecord, LoggerRecord, LossRecord, Options, StageRecord, hookimpl

BUMBLECORE_HOOK_API = 1


class EndingOptions(Options):
    share: float = Field(0.5, gt=0, le=1, description="Share of each text, from its end, that is trained.")


class FocalOptions(Options):
    gamma: float = Field(2.0, ge=0, description="0 is cross-entropy; larger looks away from easy tokens.")


class TraceOptions(Options):
    filename: str = Field("trace.jsonl", description="File in the output directory.")


def build_ending(*, options, context):
    from bumblecore_core.toolkit.causal import CausalStage
    from bumblecore_meadow.ending import Ending

    return CausalStage(Ending(options.share), context)


def build_focal(*, options):
    from bumblecore_meadow.focal import Focal

    return Focal(options.gamma)


def build_trace(*, options):
    from bumblecore_meadow.trace import Trace

    return Trace(options.filename)


def build_note(*, options):
    from bumblecore_meadow.note import Note

    return Note()


@hookimpl
def bumble_stages():
    return [
        StageRecord(
            name="ending",
            summary="Trains on the end of each text.",
            build=build_ending,
            reads="text",
            loss_kind="token",
            default_loss="focal",
            options=EndingOptions,
            model_from="config",
        )
    ]


@hookimpl
def bumble_losses():
    return [LossRecord(name="focal", summary="Focal loss.", build=build_focal, loss_kind="token", options=FocalOptions)]


@hookimpl
def bumble_loggers():
    return [LoggerRecord(name="trace", summary="One JSON line per step.", build=build_trace, options=TraceOptions)]


@hookimpl
def bumble_data_formats():
    return [
        DataFormatRecord(
            name="note",
            summary="Rows with a note.",
            build=build_note,
            detect=lambda row: "text" if isinstance(row.get("note"), str) else None,
        )
    ]
