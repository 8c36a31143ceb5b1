/** What a site asks a wallet to sign (Sign-In-With-Solana), and when a wallet must not. */

const OPENING = ' wants you to sign in with your Solana account:';
const SHOWN_CHARACTERS = 60;

/**
 * Why this text must not be signed, '' when it may be. A signature for another site would sign
 * its holder in there, so the text has to name this one, this account and the nonce asked for.
 *
 * @param {unknown} text
 * @param {{host: string, address: string, nonce: string}} own host as in `location.host`
 */
export function objection(text, { host, address, nonce }) {
  const [first, second, ...rest] = typeof text === 'string' ? text.split('\n') : [''];
  if (!first.endsWith(OPENING)) return 'the site sent no sign-in text to sign.';
  const domain = first.slice(0, -OPENING.length);
  if (domain !== host) return `the text to sign is for ${shown(domain)}, but this page is ${host}.`;
  if (second !== address) return 'the text to sign is for another account.';
  const uris = values(rest, 'URI: ');
  if (uris.some((uri) => hostOf(uri) !== host)) {
    return `the text to sign is for ${shown(uris.join(' '))}, but this page is ${host}.`;
  }
  const nonces = values(rest, 'Nonce: ');
  return nonces.length === 1 && nonces[0] === nonce ? '' : 'the text to sign has another nonce.';
}

/** @param {string[]} lines @param {string} name */
const values = (lines, name) =>
  lines.filter((line) => line.startsWith(name)).map((line) => line.slice(name.length));

/** @param {string} uri */
function hostOf(uri) {
  try {
    return new URL(uri).host;
  } catch {
    return '';
  }
}

/** @param {string} text */
const shown = (text) =>
  (text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}…` : text) || 'no site';
