// Sends the message on standard input with nodemailer: arguments MX, sender, recipient. Without any, prints the version.
const nodemailer = require("nodemailer");

const [host, from, to] = process.argv.slice(2);
if (host) {
  const raw = require("fs").readFileSync(0);
  nodemailer.createTransport({ host, port: 25 }).sendMail({ envelope: { from, to }, raw }, (error) => {
    if (error) throw error;
  });
} else {
  console.log(require("nodemailer/package.json").version);
}
