"""SFTTrainer, in layers on transformers' Trainer. Start with `trainer.py`.

    class                file              what it does
    SFTTrainer           trainer.py        its constructor; the loss of a micro-batch
    UploadingTrainer     uploading.py      uploads to the Hub, after saving
    StoppingTrainer      stopping.py       finishes and saves the step on SIGTERM and Ctrl-C
    ResumingTrainer      resuming.py       writes checkpoints, and resumes them
    WatchedTrainer       watched.py        skips steps that are not finite; records the worst
    SteppingTrainer      stepping.py       forward and backward, in smaller parts where memory runs out
    EvaluatingTrainer    evaluating.py     evaluates, predicts, shows rows, logs metrics
    LoadingTrainer       loading.py        which rows each step trains on

Each class derives from the next, overrides hooks of transformers' Trainer, and calls `super()`. So the upper ones act
around the lower ones: the loss of a step is recorded after the step was repeated in smaller parts. A layer uses its own
methods and those of the layers below. Where it declares an attribute that it does not set, the constructor of
`SFTTrainer` does. The other files hold functions and callbacks that the layers use.
"""
