// Bundles src/main.js with its libraries into the one file that the page includes. The banner names
// the hash of the sources, which a test compares, and every bundled package with its licence.
import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const templates = join(here, "..", "..", "report", "templates");

function sourceHash() {
  const names = readdirSync(join(here, "src")).filter((n) => n.endsWith(".js")).sort();
  const files = [...names.map((n) => join("src", n)), "build.mjs", "package.json", "package-lock.json"];
  const hash = createHash("sha256");
  for (const file of files) hash.update(file.replaceAll("\\", "/")).update("\0").update(readFileSync(join(here, file)));
  return hash.digest("hex");
}

function packagesOf(metafile) {
  const found = new Map();
  for (const input of Object.keys(metafile.inputs)) {
    const match = input.match(/^(.*node_modules\/((?:@[^/]+\/)?[^/]+))\//);
    if (match) found.set(match[2], join(here, match[1]));
  }
  return [...found].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, folder]) => {
    const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((n) => /^(licen[cs]e|copying)/i.test(n));
    const text = file && existsSync(join(folder, file)) ? readFileSync(join(folder, file), "utf8").trim() : "";
    if (!text) throw new Error(`${name}: no licence file`);
    return { name, version: about.version, licence: about.license, text };
  });
}

const result = await esbuild.build({
  entryPoints: [join(here, "src", "main.js")],
  absWorkingDir: here,
  bundle: true,
  minify: true,
  format: "iife",
  target: ["chrome103", "firefox113", "safari16.4"],
  charset: "ascii",
  legalComments: "none",
  metafile: true,
  write: false,
});
const packages = packagesOf(result.metafile);
const list = packages.map((p) => `${p.name} ${p.version} (${p.licence})`).join(", ");
const banner = `/* sources ${sourceHash()}\n * ${list}\n * Their licences: explorer.licences.txt, beside this file in the package analysis.report. */\n`;
const code = result.outputFiles[0].text.replaceAll("</script", "<\\/script").replaceAll("<!--", "<\\!--");
writeFileSync(join(templates, "explorer.js"), banner + code);
const texts = packages.map((p) => `${p.name} ${p.version}\n${"=".repeat(60)}\n${p.text}\n`);
writeFileSync(join(templates, "explorer.licences.txt"), texts.join("\n"));
console.log(`explorer.js ${((banner + code).length / 1000).toFixed(0)} kB, ${packages.length} packages`);
