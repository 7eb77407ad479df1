from .ensemble import Ensemble as Ensemble
from .evaluated import SavePredictions as SavePredictions
from .predictor import Predictor as Predictor
from .privacy import Redactor as Redactor
from .studies import Study as Study
from .studies import find_studies as find_studies
