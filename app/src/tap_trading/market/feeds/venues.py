"""The venues by name."""

from collections.abc import Callable, Mapping

from tap_trading.market.feeds.binance import Binance
from tap_trading.market.feeds.bitstamp import Bitstamp
from tap_trading.market.feeds.coinbase import Coinbase
from tap_trading.market.feeds.gemini import Gemini
from tap_trading.market.feeds.kraken import kraken
from tap_trading.market.feeds.venue import Venue

#: Each makes the venue for its BTC/USD book (Binance: BTC/USDT); `product=` and `url=` name
#: others.
VENUES: Mapping[str, Callable[..., Venue]] = {
    "coinbase": Coinbase,
    "kraken": kraken,
    "bitstamp": Bitstamp,
    "gemini": Gemini,
    "binance": Binance,
}
