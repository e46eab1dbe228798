"""Trainers that are wrong in one way each. Importable by name, so that other processes can have them too."""

from __future__ import annotations

from typing import Any

import torch

from honed.train.trainer.trainer import SFTTrainer


class MeanOfMeans(SFTTrainer):
    """Divides each micro-batch by its own weight instead of the step's."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs)
        return loss / self.args.gradient_accumulation_steps


class Leaky(SFTTrainer):
    """Lets all documents of a row see each other."""

    takes_flat_batches = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        length = inputs["input_ids"].shape[1]
        if "cu_seq_lens_q" in inputs:
            ends = torch.tensor([0, length], dtype=torch.int32)
            inputs = {**inputs, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": length}
            inputs = {**inputs, "max_length_k": length, "position_ids": torch.arange(length)[None]}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class OneOff(SFTTrainer):
    """Asks for the token after the next."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"].roll(-1, dims=1)
        labels[:, -1] = -100
        ones = (labels >= 0).to(inputs["loss_weights"].dtype)
        return super().compute_loss(
            model, {**inputs, "labels": labels, "loss_weights": ones}, return_outputs, num_items_in_batch
        )


class SharesWrongly(SFTTrainer):
    """Forgets which segment stands below which."""

    takes_flat_batches = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = {key: value for key, value in inputs.items() if key != "shared_prefixes"}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class RecomputesWrongly(SFTTrainer):
    """Gets another loss with gradient checkpointing."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss * 1.0001 if self.args.gradient_checkpointing else loss


class ForgetsMoments(SFTTrainer):
    """Goes on with an empty optimizer."""

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        pass


class CountsItsOwn(SFTTrainer):
    """Divides by the tokens of its own process."""

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        self.args.average_tokens_across_devices = False
        try:
            return super()._get_num_items_in_batch(batch_samples, device)
        finally:
            self.args.average_tokens_across_devices = True
