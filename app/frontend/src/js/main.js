import { AccountPanel } from './account.js';
import { Problem } from './api.js';
import { leastRate, placeBet } from './bets.js';
import { describe } from './cell.js';
import { Chart } from './chart.js';
import { everyFrame } from './frames.js';
import { Grid } from './grid.js';
import * as format from './format.js';
import { idempotencyKey } from './idempotency_key.js';
import { recordDrawn } from './latency.js';
import { Market, STATE_WORDS } from './market.js';
import { isSettled, OwnBets } from './own_bets.js';
import { OwnStream } from './own_stream.js';
import { PriceStore, WINDOW_MS } from './price_store.js';
import { Readout } from './readout.js';
import { Results } from './results.js';
import { ServerClock } from './server_clock.js';
import { Session } from './session.js';
import { LiveSocket } from './socket.js';
import { Taps } from './taps.js';
import { showVersion } from './version.js';
import { View } from './view.js';
import { openWallet } from './wallet.js';

const REFUSED_SHOWN_MS = 4_000;
const STALE_LINE_MS = 1_500;
const LOOK_FOR_OVERDUE_MS = 2_000;

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const prices = new PriceStore();
const market = new Market();
const clock = new ServerClock();
const view = new View();
const readout = new Readout();
const taps = new Taps(byId('taps'), byId('taps-none'));
const results = new Results(byId('result'));
const grid = new Grid(byId('cells'), { tap, closed: refuseTap });
const chart = new Chart(
  /** @type {HTMLCanvasElement} */ (byId('chart')), byId('cells'),
  (width, height) => view.resize(width, height),
);
const session = new Session(openWallet(), { host: location.host, onChange: showAccount });
const ownBets = new OwnBets(session, showBet);
const panel = new AccountPanel(byId('account'), comeOrGo);
const calm = matchMedia('(prefers-reduced-motion: reduce)');

/* What arrives */

/** @param {import('./messages.js').Message} message @param {number} received performance.now() */
function take(message, received) {
  switch (message.type) {
    case 'hello':
      clock.reset();
      clock.sample(message.server_time, received);
      prices.restore(message.bars, message.price);
      if (message.price) market.priceArrived(received);
      market.setState(message, received);
      grid.update(message.grid, clock.now());
      ownStream.greeted(message.epoch);
      showVersion(byId('version'));
      break;
    case 'price':
      prices.add(message, received);
      market.priceArrived(received);
      break;
    case 'grid':
      grid.update(message, clock.now());
      break;
    case 'status':
      market.setState(message, received);
      break;
    case 'pong':
      clock.sample(message.server_time, received, socket.pingedAt);
      break;
    case 'authenticated':
    case 'bet':
    case 'balance':
    case 'reset':
      ownStream.take(message);
      break;
  }
  showState();
}

const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:';
const socket = new LiveSocket(`${scheme}//${location.host}/ws`, {
  onMessage: take,
  onState: (link) => {
    market.setLink(link);
    showState();
  },
});
const ownStream = new OwnStream(session, (message) => socket.send(message), {
  bet: (bet) => ownBets.take(bet),
  balance: (cents) => session.hearBalance(cents),
  read: () => {
    ownBets.read();
    session.refresh();
  },
  left: () => {
    for (const cellId of ownBets.forget()) {
      grid.mark(cellId, null);
      taps.remove(cellId);
    }
    results.clear();
  },
});

/* What is shown */

function showState() {
  const now = performance.now();
  const state = market.pageState(now);
  const connection = byId('connection');
  if (connection.dataset.state !== state) {
    connection.dataset.state = state;
    byId('connection-words').textContent = STATE_WORDS[state];
  }
  const seen = { hasPrice: prices.last !== undefined, hasCells: grid.hasOpenCells(clock.now()) };
  const notice = market.notice(state, seen);
  byId('notice-box').hidden = notice === '';
  write('notice', notice);
  write('wait', market.wait(state, now));
  grid.setTakesBets(market.takesBets() && session.state !== 'impossible');
}

/** @param {string} id @param {string} words */
function write(id, words) {
  if (byId(id).textContent !== words) byId(id).textContent = words;
}

/** @param {number} elapsed ms */
function drawFrame(elapsed) {
  const now = clock.now();
  const bar = prices.last;
  const minute = prices.summary(now - WINDOW_MS);
  const { step, columnMs } = grid;
  view.advance({
    now, price: bar?.price, range: minute, step, columnMs, elapsed, reduced: calm.matches,
  });
  const stale = bar !== undefined && now - bar.t > STALE_LINE_MS;
  chart.draw(view, { bars: prices.bars, stale, step, ticks: ticks() });
  grid.frame(view, now);
  if (bar) readout.show(bar, minute);
  const drawn = prices.takeUndrawn();
  if (drawn.length > 0) recordDrawn(drawn, performance.now());
}

/** Times to name: each 15 s of the past, and the columns' starts or else each 15 s to come. */
function ticks() {
  const every = 15_000;
  const past = [];
  for (let t = Math.ceil((view.now - WINDOW_MS) / every) * every; t <= view.now; t += every) {
    past.push(t);
  }
  const ahead = grid.starts.filter((start) => start > view.now);
  if (ahead.length === 0) for (let n = 1; n <= 3; n += 1) ahead.push((past.at(-1) ?? 0) + n * every);
  return [...past, ...ahead];
}

/* The account */

function showAccount() {
  panel.show(session);
  ownStream.sessionChanged();
  if (session.state === 'impossible') answer('refused', session.walletProblem?.message ?? '');
  showState();
}

async function comeOrGo() {
  const goes = session.state === 'in';
  try {
    await (goes ? session.end() : session.begin());
    answer('', goes
      ? 'Signed out. Your wallet stays in this browser, and the next tap signs it in again.'
      : 'Signed in. Tap a cell to stake on it.');
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    answer('refused', `Not signed ${goes ? 'out' : 'in'}: ${problem.message}`);
  }
}

/* Stakes and taps */

/** Bets without an answer, by cell: a second tap asks again with the same key and amount. */
const unanswered = new Map();

/** @param {import('./cell.js').Cell} cell @param {string | null} rate the one that it showed */
async function tap(cell, rate) {
  const again = unanswered.get(cell.id);
  const bet = again
    ?? { cellId: cell.id, amount: stake(), key: idempotencyKey(), minRate: leastRate(rate) };
  unanswered.delete(cell.id);
  let attempts = again ? 2 : 1;
  const what = `${format.money(bet.amount)} on ${describe(cell)}`;
  showTap(bet, 'sending');
  answer('sending', session.state === 'in' ? `Sending ${what}.` : `Signing in, then sending ${what}.`);

  const outcome = await placeBet(bet, session, (attempt, of) => {
    attempts = attempt;
    answer('sending', `No answer yet, trying again (${attempt} of ${of}): ${what}.`);
  });

  if (outcome.kind === 'accepted') {
    session.takeBalance(outcome.balance, outcome.placedAt);
    // A retry is told the balance of its first time.
    if (attempts > 1) session.refreshSoon();
    ownBets.take(placed(bet, outcome));
    answer('pending', `Accepted: ${what}. Bet id ${outcome.betId}.`);
  } else {
    showTap(bet, outcome.kind);
    answer(outcome.kind, outcome.kind === 'refused' ? `Not placed: ${outcome.words}` : outcome.words);
  }
  if (outcome.kind === 'unknown') unanswered.set(cell.id, bet);
  if (outcome.kind === 'refused') {
    setTimeout(() => grid.unmark(cell.id), REFUSED_SHOWN_MS);
    if (outcome.code === 'insufficient_funds') session.refresh();
    // The bet that is in the way was placed elsewhere: show it.
    if (outcome.code === 'duplicate_cell') ownBets.read();
  }
  // Others may have told of the bet before its own answer came.
  const known = ownBets.on(cell.id);
  if (known) showBet(known, known);
}

/**
 * @param {{cellId: string, amount: number}} bet @param {{betId: string, placedAt: unknown}} accepted
 * @returns {import('./messages.js').Bet}
 */
function placed({ cellId, amount }, { betId, placedAt }) {
  const at = Date.parse(String(placedAt));
  return {
    betId, cellId, amount, status: 'pending', rate: null, payout: null, voidReason: '',
    placedAt: Number.isNaN(at) ? clock.now() : at,
  };
}

/** @param {{cellId: string, amount: number}} bet @param {'sending' | 'refused' | 'unknown'} state */
function showTap(bet, state) {
  grid.mark(bet.cellId, state, format.money(bet.amount));
  taps.tapped(bet, clock.now(), state);
}

/** A tap on a cell that is closed is answered too. @param {string} why '' if the market is */
function refuseTap(why) {
  const because = why || byId('notice').textContent || 'Taps are off.';
  if (session.state !== 'impossible') answer('refused', `Not placed: ${because}`);
}

/* What became of bets */

/** @param {import('./messages.js').Bet} bet @param {import('./messages.js').Bet} [before] */
function showBet(bet, before) {
  const stake = format.money(bet.amount);
  const rate = bet.rate === null ? '' : `${format.rate(bet.rate)}×`;
  const [words, note] = {
    confirmed: [stake, rate],
    won: [bet.payout === null ? stake : format.brief(bet.payout), 'won'],
    lost: [stake, 'lost'],
    void: [stake, 'back'],
  }[bet.status] ?? [stake, ''];
  grid.mark(bet.cellId, bet.status, words, note);
  taps.show(bet);
  if (!isSettled(bet) || before === undefined) return;
  if (!isSettled(before)) results.show(bet, ownBets.all);
  if (bet.status === 'void' && !bet.voidReason) ownBets.ask(bet.betId);
}

/** @param {string} kind @param {string} words */
function answer(kind, words) {
  byId('answer').dataset.kind = kind;
  byId('answer').textContent = words;
}

function stake() {
  const chosen = /** @type {HTMLInputElement} */ (document.querySelector('input[name=stake]:checked'));
  return Number(chosen.value);
}

byId('stakes').addEventListener('change', () => grid.setStake(stake()));
grid.setStake(stake());
session.restore();
showAccount();
socket.start();
everyFrame(drawFrame);
setInterval(() => {
  showState();
  if (prices.last) grid.centreOn(prices.last.price);
}, 250);
setInterval(() => ownBets.askOverdue(clock.now()), LOOK_FOR_OVERDUE_MS);
