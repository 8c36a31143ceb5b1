/** Shows which release answers; asked again after each reconnect, as a deploy may lie between. */
export async function showVersion(/** @type {HTMLElement} */ where) {
  try {
    const response = await fetch('/api/version', { cache: 'no-store' });
    if (!response.ok) return;
    const { version, git_commit: commit } = await response.json();
    if (typeof version !== 'string') return;
    where.textContent = version;
    if (typeof commit === 'string') where.title = `Commit ${commit}`;
  } catch {
    // The footer keeps what it showed: the page works without it.
  }
}
