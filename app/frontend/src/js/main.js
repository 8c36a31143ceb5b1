import { AccountPanel } from './account.js';
import { Problem } from './api.js';
import { placeBet } from './bets.js';
import { describe } from './cell.js';
import { Chart } from './chart.js';
import { everyFrame } from './frames.js';
import { Grid } from './grid.js';
import * as format from './format.js';
import { idempotencyKey } from './idempotency_key.js';
import { recordDrawn } from './latency.js';
import { Market, STATE_WORDS } from './market.js';
import { PriceStore, WINDOW_MS } from './price_store.js';
import { Readout } from './readout.js';
import { ServerClock } from './server_clock.js';
import { Session } from './session.js';
import { LiveSocket } from './socket.js';
import { Taps } from './taps.js';
import { showVersion } from './version.js';
import { View } from './view.js';
import { openWallet } from './wallet.js';

const REFUSED_SHOWN_MS = 4_000;
const STALE_LINE_MS = 1_500;

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const prices = new PriceStore();
const market = new Market();
const clock = new ServerClock();
const view = new View();
const readout = new Readout();
const taps = new Taps(byId('taps'), byId('taps-none'));
const grid = new Grid(byId('cells'), tap);
const chart = new Chart(
  /** @type {HTMLCanvasElement} */ (byId('chart')), byId('cells'),
  (width, height) => view.resize(width, height),
);
const session = new Session(openWallet(), { host: location.host, onChange: showAccount });
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
      market.setState(message.state);
      grid.update(message.grid, clock.now());
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
      market.setState(message.state, message.reason);
      break;
    case 'pong':
      clock.sample(message.server_time, received, socket.pingedAt);
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

/* What is shown */

function showState() {
  const state = market.pageState(performance.now());
  const connection = byId('connection');
  if (connection.dataset.state !== state) {
    connection.dataset.state = state;
    byId('connection-words').textContent = STATE_WORDS[state];
  }
  const seen = { hasPrice: prices.last !== undefined, hasCells: grid.hasOpenCells(clock.now()) };
  const notice = market.notice(state, seen);
  if (byId('notice').textContent !== notice) byId('notice').textContent = notice;
  grid.setTakesBets(market.takesBets() && session.state !== 'impossible');
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

/** @param {import('./cell.js').Cell} cell */
async function tap(cell) {
  const bet = unanswered.get(cell.id)
    ?? { cellId: cell.id, amount: stake(), key: idempotencyKey() };
  unanswered.delete(cell.id);
  const what = `${format.money(bet.amount)} on ${describe(cell)}`;
  const setTap = taps.add(bet);
  grid.mark(cell.id, 'sending', bet.amount);
  answer('sending', session.state === 'in' ? `Sending ${what}.` : `Signing in, then sending ${what}.`);

  const outcome = await placeBet(bet, session, (attempt, of) => {
    answer('sending', `No answer yet, trying again (${attempt} of ${of}): ${what}.`);
  });

  if (outcome.kind === 'accepted') {
    session.takeBalance(outcome.balance, outcome.placedAt);
    grid.mark(cell.id, 'pending', bet.amount);
    setTap('pending', outcome.betId);
    answer('pending', `Accepted: ${what}. Bet id ${outcome.betId}.`);
    return;
  }
  if (outcome.kind === 'unknown') unanswered.set(cell.id, bet);
  if (outcome.kind === 'refused' && outcome.code === 'insufficient_funds') session.refresh();
  grid.mark(cell.id, outcome.kind, bet.amount);
  setTap(outcome.kind);
  answer(outcome.kind, outcome.kind === 'refused' ? `Not placed: ${outcome.words}` : outcome.words);
  if (outcome.kind === 'refused') setTimeout(() => grid.unmark(cell.id), REFUSED_SHOWN_MS);
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
