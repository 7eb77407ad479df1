from .ensemble import Ensemble as Ensemble
from .evaluated import SavePredictions as SavePredictions
from .predictor import Predictor as Predictor
from .privacy import Redactor as Redactor
from .studies import Studies as Studies
from .study import Study as Study
