"""A BumbleCore plugin (`bumble -p cuda_peak run …`): the logger that writes the peak of CUDA memory."""

from bumblecore_core import LoggerRecord, hookimpl


class CudaPeak:
    """Writes `cuda_peak.txt`, in bytes, into the run's directory."""

    def start(self, *, info):
        self.directory = info.output_dir

    def step(self, *, event):
        pass

    def saved(self, *, directory):
        pass

    def finish(self, *, result):
        import torch

        (self.directory / "cuda_peak.txt").write_text(str(torch.cuda.max_memory_allocated()))


@hookimpl
def bumble_loggers():
    return [LoggerRecord(name="cuda_peak", summary="Peak of CUDA memory.", build=lambda *, options: CudaPeak())]
