// node take.mjs PROMETHEUS FOLDER MINUTES SCRAPE_SECONDS [UID...]
// Draws the committed dashboards from a Prometheus, and saves a picture of each; fails where a panel's query failed
// or the page reported an error. OPEN=1 opens collapsed rows; TO=SECONDS is the end of the time shown (now).
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { createServer } from 'vite';

// Grafana's components in development want translations to be loaded, and stop without them.
process.env.NODE_ENV = 'production';
const [prometheus, folder, minutes, scrape, ...only] = process.argv.slice(2);
const here = import.meta.dirname;
const dashboards = join(here, '..', 'dashboards');
const WIDTH = 1600;
// The one guest and host that a dashboard of one shows.
const SHOWN = { 'virtgauge-domain': { domain: 'db1' }, 'virtgauge-host': { instance: 'alpha:9177' } };
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync'];

async function picture(browser, address, uid) {
  const page = await browser.newPage();
  await page.setViewportSize({ width: WIDTH, height: 1000 });
  const errors = [];
  page.on('console', (message) => message.type() === 'error' && errors.push(message.text()));
  page.on('pageerror', (error) => errors.push(String(error)));
  const to = Number(process.env.TO ?? Math.floor(Date.now() / 1000));
  const asked = new URLSearchParams({ uid, to, from: to - Math.round(minutes * 60), scrape, ...SHOWN[uid],
    ...(process.env.OPEN ? { open: '' } : {}) });
  await page.goto(`${address}/?${asked}`, { waitUntil: 'commit' });
  await page.waitForFunction(() => document.title === 'drawn', undefined, { timeout: 300_000 }).catch(
    (error) => errors.push(String(error)));
  const height = await page.evaluate(() => Math.ceil(document.querySelector('main')?.getBoundingClientRect().height ?? 0));
  await page.setViewportSize({ width: WIDTH, height: Math.max(height, 200) });
  await page.waitForTimeout(1000);
  await page.screenshot({ path: join(folder, `${uid}.png`) });
  const empty = await page.$$eval('section:has(.empty)', (found) => found.map((one) => one.dataset.title));
  console.log(`${uid}: ${WIDTH} x ${height}${empty.length ? `; empty: ${empty.join(', ')}` : ''}`);
  await page.close();
  return errors.filter((text) => !text.includes('404')).map((text) => `${uid}: ${text}`);
}

const served = await createServer({ root: here, server: { proxy: { '/api': prometheus } } });
await served.listen();
const address = `http://127.0.0.1:${served.httpServer.address().port}`;
const profile = mkdtempSync(join(tmpdir(), 'chromium-'));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', headless: true, args: FLAGS });
const errors = [];
try {
  const uids = only.length ? only : readdirSync(dashboards).map((file) => file.replace(/\.json$/, ''));
  for (const uid of uids) {
    errors.push(...await picture(browser, address, uid));
  }
} finally {
  await browser.close();
  await served.close();
  rmSync(profile, { recursive: true, force: true });
}
errors.forEach((error) => console.error(error));
process.exit(errors.length ? 1 : 0);
