import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from cvkit.config import load_config
from cvkit.errors import ConfigError, RunError
from cvkit.registry import VISUALIZERS
from cvkit.runs.compare import Runs
from cvkit.runs.experiment import Experiment
from cvkit.session import build_trainer
from cvkit.training.resume import checkpoint_of


def test_its_model_is_the_one_that_training_begins_with(tiny):
    config = load_config(tiny, {"SEED": 5})
    ours, theirs = Experiment(config).model, build_trainer(config).state.model
    assert all(torch.equal(value, theirs.state_dict()[name])
               for name, value in ours.state_dict().items())


def test_a_run_has_the_trained_model_and_what_it_was_trained_with(run):
    checkpoint = run.checkpoint()
    assert not run.model.training
    assert all(torch.equal(value, checkpoint.model[name])
               for name, value in run.model.state_dict().items())
    assert (list(run.loaders.mean), list(run.loaders.std)) == (checkpoint.mean, checkpoint.std)
    batch = run.loaders.test.take(range(150))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=run.precision != "fp32"):
        predicted = run.model(batch.images).argmax(1).numpy()
    assert (predicted == run.predictions.predicted).mean() > 0.98  # of batches of another size


def test_parts_are_built_once(run):
    assert run.data is run.data and run.model is run.model and run.loaders is run.loaders


def test_a_config_has_no_run_and_says_what_to_do(tiny):
    experiment = Experiment(load_config(tiny))
    for name, needed in (("misclassified", "one finished run"), ("curves", "a finished run"),
                         ("disagreements", "two or more runs")):
        with pytest.raises(RunError, match=f"{name} needs {needed}; this is a config, not a run"):
            experiment.visualize(name)


def test_what_one_run_draws_is_not_drawn_of_several(run, painted):
    with pytest.raises(RunError, match="this is a set of runs\n  Draw it for one run at a time"):
        Runs([run, painted]).visualize("cam")
    with pytest.raises(RunError, match="two or more runs; this is one run\n  Name them: --run A B"):
        run.visualize("disagreements")


def test_a_misspelt_picture_is_named(run):
    with pytest.raises(ConfigError, match="Did you mean misclassified"):
        run.visualize("missclassified")


def test_own_visualizers_ask_for_what_they_need(run):

    @VISUALIZERS.register()
    def histogram(predictions, bins: int = 10) -> Figure:
        """How sure the model was."""
        figure = Figure()
        figure.add_subplot().hist(predictions.probabilities.max(1), bins)
        return figure

    figure = run.visualize("histogram", bins=7)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert len(heights) == 7 and sum(heights) == 150
    expected, _ = np.histogram(run.predictions.probabilities.max(1), 7)
    assert heights == expected.tolist()


def test_parts_that_are_given_keep_their_config(tiny, run):
    ours, other = load_config(tiny, {"TRAIN.CLIP_GRAD_NORM": 1.0}), load_config(tiny, {"TRAIN.EPOCHS": 7})
    parts = Experiment(ours)
    first, second = build_trainer(ours, parts), build_trainer(other, parts)
    assert parts.config is ours and first.parts.data is second.parts.data is parts.data
    assert first.state.clip_grad_norm == 1.0 and second.state.clip_grad_norm == 0.0
    for trainer, config in ((first, ours), (second, other)):
        assert checkpoint_of(trainer.state, trainer.parts).config == config.dump()
    epochs = run.config.TRAIN.EPOCHS
    assert build_trainer(other, run).config.TRAIN.EPOCHS == 7 and run.config.TRAIN.EPOCHS == epochs
