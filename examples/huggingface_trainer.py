"""The `Trainer` of `transformers`, in four bits: `python -m examples.huggingface_trainer`.

The model is compiled before the `Trainer` gets it. `TrainingArguments(torch_compile_backend="spectral")` does not work:
the library `accelerate` has a list of backends ("ValueError: 'SPECTRAL' is not a valid DynamoBackend").
"""

import tempfile
from collections.abc import Sequence

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator

import spectral_compile as spectral
from examples.corpus import load_corpus
from examples.stand_ins import Parser, Windows, in_four_bits, tiny_llama


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train; the losses of the first and the last step."""
    args = Parser("The Trainer of transformers in four bits.", steps=60).parse_args(arguments)
    torch.manual_seed(0)
    corpus, model = load_corpus(), tiny_llama()
    training = Windows(corpus.train)
    example = default_data_collator([training[0], training[1]])
    with torch.autocast("cpu", torch.bfloat16):  # as with bf16=True below
        print(in_four_bits(spectral.explain(model, **example, options=args.options)))
    model.compile(backend="spectral", options=args.options)  # the only line that changes

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            max_steps=args.steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            bf16=True,
            use_cpu=True,
            logging_steps=1,
            log_level="error",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model, settings, train_dataset=training)
        trainer.remove_callback(PrinterCallback)  # a line a step
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"training loss {losses[0]:.3f} before, {losses[-1]:.3f} after {args.steps} steps")
    return {"before": losses[0], "after": losses[-1]}


if __name__ == "__main__":
    main()
