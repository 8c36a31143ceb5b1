"""The models that rates and volatilities were ever computed by, by the names that are stored.

A model never changes once bets depend on it: new parameters are a new model, the old one stays
here, so that whatever was decided by it can be computed again.
"""

from tap_trading.game.rates import RateModel
from tap_trading.game.volatility import VolatilityModel

#: Those in force.
RATES = RateModel()
VOLATILITY = VolatilityModel()

ALL_RATES = {model.version: model for model in (RATES,)}
ALL_VOLATILITIES = {model.version: model for model in (VOLATILITY,)}
