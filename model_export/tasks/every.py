"""The tasks by name of their model, in the order in which they are trained."""

from model_export.tasks import code_language, docstring_words, sensor_anomaly, sound_events
from model_export.tasks.task import Train

TASKS: dict[str, Train] = {
    docstring_words.NAME: docstring_words.train,
    sensor_anomaly.NAME: sensor_anomaly.train,
    code_language.NAME: code_language.train,
    sound_events.NAME: sound_events.train,
}
