"""Search: train the supernet on the ELBO; leaves the trained supernet and its posterior."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow as tf

from tfnas import data, training, workdir
from tfnas.config import Config
from tfnas.costs import cost
from tfnas.supernet import Supernet, gate


def run(config: Config, path: str | os.PathLike[str]) -> None:
    """Trains the supernet of `config` in the working directory `path`, from its last checkpoint if there is one.

    Raises:
        UserError: for bad settings, data or files, or a loss that is no longer finite.
    """
    work = workdir.Workdir(path)
    work.run_stage("search", config, lambda: _search(config, work))


def _search(config: Config, work: workdir.Workdir) -> None:
    training.set_seed(config.seed)
    splits = data.load(config.data, work.path / "tensorflow_datasets")
    print(f"{config.data.title}: {splits.summary()}")
    settings = config.search
    supernet = _gated(config, splits)
    steps = splits.sizes["train"] // settings.batch_size
    supernet.compile(
        training.sgd(settings, training.schedule(settings, steps)),
        loss=training.classification_loss(),
        metrics=["accuracy"],
    )
    writer = tf.summary.create_file_writer(str(work.path / "tensorboard"))

    def batches(first_epoch: int) -> tf.data.Dataset:
        return data.training_batches(
            splits, config.data, settings.batch_size, settings.epochs, config.seed, first_epoch
        )

    def on_epoch(history: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in history)
        work.write(workdir.HISTORY, lambda file: file.write_text(lines))
        _write_tensorboard(writer, history[-1])

    training.fit(
        supernet,
        batches,
        settings.epochs,
        steps,
        work,
        workdir.CHECKPOINT,
        key=work.key("search", config),
        title="search",
        describe=lambda: _describe(supernet),
        on_epoch=on_epoch,
    )
    work.write(workdir.SUPERNET, supernet.save)
    posterior = supernet.posterior().to_json()
    work.write(workdir.POSTERIOR, lambda file: file.write_text(posterior))


def _gated(config: Config, splits: data.Splits) -> Supernet:
    settings = config.search
    supernet = gate(
        training.network(config, splits),
        ell2=settings.ell2,
        num_examples=settings.example_multiplier * splits.sizes["train"],
        temperature=settings.temperature,
        initial_drop=settings.initial_drop,
        gate_learning_rate=settings.gate_learning_rate,
        prior=settings.prior,
        gate_dense=settings.gate_dense,
        gate_pooling=settings.gate_pooling,
        include=_patterns(settings.include),
        exclude=_patterns(settings.exclude),
        seed=config.seed,
    )
    full = cost(supernet.graph)
    given = ", ".join(f"{name}={value}" for name, value in config.supernet.arguments().items())
    print(
        f"supernet {config.supernet.source or f'{config.supernet.name}({given})'}: "
        f"{full.parameters:,} parameters, {len(supernet.gated_layers)} gated layers, "
        f"{full.multiply_adds / 1e6:.2f} M multiply-adds"
    )
    return supernet


def _patterns(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def _describe(supernet: Supernet) -> dict[str, Any]:
    posterior = supernet.posterior()
    decided, groups = posterior.decided()
    return {
        "kept": posterior.expected_kept(),
        "decided": f"{decided}/{groups}",
        "drop_probability": {g.name: list(g.drop_probability) for g in posterior.layers},
    }


def _write_tensorboard(writer: Any, record: dict[str, Any]) -> None:
    with writer.as_default(step=record["epoch"]):
        for name in ("loss", "accuracy", "kept"):
            tf.summary.scalar(name, record[name])
        for layer, probabilities in record["drop_probability"].items():
            for group, p in enumerate(probabilities):
                tf.summary.scalar(f"drop_probability/{layer}/{group}", p)
    writer.flush()
