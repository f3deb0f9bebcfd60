"""What the executor may be told: the model to serve and the ranks to serve it on."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ModelSettings(BaseModel):
    """Which model, where it lives and how it computes.

    Attributes:
        path: an embedded model (`demo-flux`, `demo-sd3`), a directory in diffusers format, or a hub id.
        local_files_only: never ask the hub; a hub id must then be in the local cache.
        device: `auto` takes CUDA where there is a GPU.
        dtype: `auto` is float32 on CPU and bfloat16 on CUDA.
        attention_backend: `auto`, or the name of one of xfuser's backends (`sdpa`, `cudnn`, `flash`, …).
        max_sequence_length: T5's tokens of each prompt; None takes what diffusers does (512 for FLUX.1, 256 for
            Stable Diffusion 3), or less where the model's tokenizer allows less.
        load_t5: false leaves the third and largest text encoder of Stable Diffusion 3 out; its images suffer a little.
        text_encoder_ranks: how many ranks, the first ones, keep the text encoders in device memory (CUDA only). The
            others share one copy in host memory, from which they bring each layer for each prompt: that is slower, and
            the latency table does not know. None means all.
        vae_tiling_above: images of more pixels are decoded in overlapping tiles, which need less memory and
            differ a little where they meet; None never does.
        compile: compile the transformer's blocks (torch.compile) for every shape in the latency table, at the start;
            images of other sizes are refused.
        random_weights: make the weights at random where they compute, instead of reading them: to measure what a model
            takes whose weights are not there, since that does not depend on them. The directory needs no weights then,
            only configurations and tokenizers. Images are noise. Text encoders in host memory are not shared: each
            rank beyond `text_encoder_ranks` has its own.
        pace_table: for benchmarks on CPUs whose speed wanders: a latency table. An encode, step or decode that is done
            sooner than it says waits until that time is over, as if by locked clocks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(default="demo-flux", min_length=1)
    local_files_only: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention_backend: str = Field(default="auto", min_length=1)
    max_sequence_length: int | None = Field(default=None, ge=1, le=512)
    load_t5: bool = True
    text_encoder_ranks: int | None = Field(default=None, ge=0)
    vae_tiling_above: int | None = Field(default=2048 * 2048, ge=1)
    compile: bool = False
    random_weights: bool = False
    pace_table: str | None = Field(default=None, min_length=1)


class ExecutorSettings(BaseModel):
    """How many ranks, and how long each thing may take before it counts as failed.

    Attributes:
        world_size: ranks; None means 2 on CPU and every visible GPU on CUDA.
        threads_per_rank: intra-op threads of each rank (CPU only).
        pin_ranks: each rank keeps to `threads_per_rank` cores of its own (CPU only), so that the times of its steps
            are steadier; for a machine that does nothing else.
        group_timeout_s: a collective that takes longer fails its group.
        segment_timeout_s: a segment that runs longer gets its ranks killed; one of known length much sooner.
        slow_pass_s: a segment of known length gets its ranks killed after ten times that and this: a first pass on a
            new shape takes seconds, and after the loss of a rank `model.compile` makes it a minute or more.
        start_timeout_s: at the start of the server, loading the model and forming the groups must end within this.
        respawn_timeout_s: a rank that replaces a lost one must have loaded the model within this, or is killed and
            tried again. None takes thrice what the slowest rank needed at the start, at least 60 s and at most
            `start_timeout_s`.
        form_timeout_s: forming all groups anew must end within this, or the ranks that are not done are killed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    world_size: int | None = Field(default=None, ge=1)
    threads_per_rank: int = Field(default=1, ge=1)
    pin_ranks: bool = False
    group_timeout_s: float = Field(default=60.0, gt=0)
    segment_timeout_s: float = Field(default=120.0, gt=0)
    slow_pass_s: float = Field(default=10.0, gt=0)
    start_timeout_s: float = Field(default=600.0, gt=0)
    respawn_timeout_s: float | None = Field(default=None, gt=0)
    form_timeout_s: float = Field(default=60.0, gt=0)
