// Vendors the third-party browser modules: `node gateway/web/vendor/refresh.mjs` fetches the pinned packages with npm
// and records version, hashes and licence in VENDOR.json. Nothing at run time uses it; it knows nothing about the page.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const here = import.meta.dirname;

const MODULES = [
  { name: "markdown-it", version: "15.0.3", source: "dist/browser/markdown-it.esm.min.mjs", file: "markdown-it.js",
    bundles: ["entities@^8.1.0", "linkify-it@^6.1.0", "mdurl@^2.1.0", "punycode.js@^2.3.1", "uc.micro@^3.0.0"] },
  { name: "dompurify", version: "3.4.18", source: "dist/purify.es.mjs", file: "dompurify.js", bundles: [] },
];

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

function withPackage(wanted, use) {
  const folder = mkdtempSync(join(tmpdir(), "vendor-"));
  try {
    const said = execFileSync("npm", ["pack", wanted, "--json", "--silent"], { cwd: folder, encoding: "utf8" });
    const [{ filename, integrity }] = JSON.parse(said);
    execFileSync("tar", ["xzf", filename], { cwd: folder });
    const root = join(folder, "package");
    return use(root, JSON.parse(readFileSync(join(root, "package.json"), "utf8")), integrity);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function licenceText(root) {
  const file = readdirSync(root).find((name) => /^licen[cs]e(-mit)?(\.\w+)?$/i.test(name));
  return readFileSync(join(root, file), "utf8").trim();
}

const bundled = (wanted) => withPackage(wanted, (root, { name, version, license }) =>
  ({ name, version, licence: license, text: licenceText(root) }));

function vendor({ name, version, source, file, bundles }) {
  return withPackage(`${name}@${version}`, (root, { license }, integrity) => {
    const bytes = readFileSync(join(root, source));
    const parts = bundles.map(bundled);
    const texts = [{ name, text: licenceText(root) }, ...parts].map(({ name, text }) => `${name}\n\n${text}\n`);
    writeFileSync(join(here, file), bytes);
    writeFileSync(join(here, `${name}.LICENSE`), texts.join(`\n${"-".repeat(80)}\n\n`));
    return {
      name, version, source, file, licence: license, licence_file: `${name}.LICENSE`,
      package_integrity: integrity, sha256: sha256(bytes),
      bundles: parts.map(({ name, version, licence }) => ({ name, version, licence })),
    };
  });
}

writeFileSync(join(here, "VENDOR.json"), JSON.stringify({ modules: MODULES.map(vendor) }, null, 2) + "\n");
