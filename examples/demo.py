"""Train one GPT in bf16, in plain NVFP4 and in NVFP4 with the mean removed: `python -m examples.demo`.

All arms start from the same weights and see the same batches; only the backend and its recipe differ.
Ctrl-C keeps what was measured: finished arms and the interrupted one's curve so far (exit code 130).
"""

import itertools
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from examples.arguments import Parser, training_config
from examples.arms import Arm, parse_arms
from examples.corpus import Corpus, load_corpus
from examples.picture import draw_curves
from examples.results import ArmResult, Run
from examples.training import Batch, Trainer, TrainingConfig

INTERRUPTED = 130  # a shell's exit code for Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the process's exit code."""
    console = Console()
    parser = Parser("Train one GPT several ways from the same start and compare the losses.", out="runs/demo")
    args = parser.parse_args(arguments)
    try:
        config, corpus = training_config(args), load_corpus()
        arms = parse_arms(args.arms, config.model.layers)
        held_out = config.held_out_batches(corpus)  # also checks that a context fits into the text
    except (ValueError, OSError) as error:
        parser.error(str(error))

    run = Run(config, corpus)
    with progress_bars(console) as progress:
        bars = [progress.add_task(arm.name, total=config.steps, start=False, note="waiting") for arm in arms]
        for arm, bar in zip(arms, bars, strict=True):
            result = run_arm(config, arm, corpus, held_out, progress, bar)
            run.arms.append(result)
            run.write(args.out)  # after each arm: a later one's failure loses nothing
            if result.interrupted:
                break
    console.print(run.table())
    draw_curves(run.arms, args.out / "curves.png")
    console.print(f"Written: {args.out / 'result.json'} and {args.out / 'curves.png'}")
    return INTERRUPTED if run.interrupted else 0


def run_arm(
    config: TrainingConfig, arm: Arm, corpus: Corpus, held_out: list[Batch], progress: Progress, bar: TaskID
) -> ArmResult:
    """Compile and train one arm from the start; Ctrl-C ends it early and keeps what was measured."""
    result = ArmResult(arm.name)
    progress.start_task(bar)
    try:
        progress.update(bar, note="compiling")
        trainer = Trainer(config, arm)
        training = config.training_batches(corpus)
        result.compile_seconds = trainer.compile(held_out[0])
        result.saved_bytes = trainer.saved_bytes(held_out[0])
        for step, batch in enumerate(itertools.islice(training, config.steps)):
            start = time.perf_counter()
            loss = trainer.step(batch, config.learning_rate(step))
            result.step_seconds.append(time.perf_counter() - start)
            result.train_loss.append(loss)
            note = f"loss {loss:.3f}  {1000 * result.step_seconds[-1]:.0f} ms a step"
            progress.update(bar, advance=1, note=note)
            if config.validates_after(step):
                result.validation.append((step + 1, trainer.validate(held_out)))
                log(progress, f"{arm.name} step {step + 1}: {result.summary()}")
    except KeyboardInterrupt:
        result.interrupted = True
    progress.update(bar, note=result.summary())
    progress.stop_task(bar)
    return result


def progress_bars(console: Console) -> Progress:
    """One bar an arm: steps, loss and step time, time spent and left."""
    return Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def log(progress: Progress, line: str) -> None:
    """A line of text where the output is a file or a pipe, in which bars cannot move."""
    if not progress.console.is_terminal:
        progress.console.print(line, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
