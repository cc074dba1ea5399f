// A real browser, headless: opens a place, signs in as an account wherever a provider asks, and says where it ended. Then
// it runs what is given as a fetch from that page. Arguments: folder of modules, fingerprints of the keys that it
// may trust, account, place, code to type in ("" for none), and a script for the last page.
import { pathToFileURL } from 'node:url';

const [modules, pins, account, place, code, script] = process.argv.slice(2);
const { chromium } = await import(pathToFileURL(`${modules}/node_modules/playwright-core/index.mjs`));

const browser = await chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: ['--no-sandbox', `--ignore-certificate-errors-spki-list=${pins}`],
});
try {
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(20_000);
  await page.goto(place);
  for (let step = 0; step < 10; step += 1) {
    if (code && (await page.locator('input[name=user_code]:visible').count())) {
      await page.fill('input[name=user_code]:visible', code);
    } else if (await page.locator('input[name=login]').count()) {
      await page.fill('input[name=login]', account);
      await page.fill('input[name=password]', 'anything');
    } else if (!(await page.locator('button[type=submit]').count())) {
      break;
    }
    await Promise.all([page.waitForNavigation(), page.locator('button[type=submit]').first().click()]);
  }
  const cookies = (await page.context().cookies()).map(({ name, httpOnly, secure, sameSite, path }) => ({
    name, httpOnly, secure, sameSite, path,
  }));
  const seen = await page.evaluate(() => document.cookie);
  const ran = script ? await page.evaluate(`(async () => { ${script} })()`) : null;
  const text = await page.evaluate(() => document.body.innerText);
  console.log(JSON.stringify({ url: page.url(), text, cookies, seen, ran }));
} catch (error) {
  const [page] = browser.contexts().flatMap((context) => context.pages());
  console.error(page && `${page.url()}\n${await page.content()}`);
  throw error;
} finally {
  await browser.close();
}
