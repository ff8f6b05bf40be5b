// The users of the stack's own MongoDB, each with the least role. The image runs this once, on an empty volume; run it again (docs/deploy.md)
// after an upgrade that needs more privileges or after a new password in .env: it then changes what is there.
const name = "cml_cloud_manager";
const database = db.getSiblingDB(name);

// Before anything is made: with a password that breaks the connection strings nobody would get in.
for (const variable of ["MONGODB_EXPORTER_PASSWORD", "MONGODB_DEMO_PASSWORD"]) {
  const password = process.env[variable] || "";
  if (!/^[A-Za-z0-9]*$/.test(password) || (password === "" && variable === "MONGODB_EXPORTER_PASSWORD")) {
    throw new Error(`${variable} must be letters and digits only, because it stands in connection strings: change it in .env; ` +
      "where this was the first start, make the volume anew (docker compose down --volumes)");
  }
}

function on(collection, ...actions) {
  return { resource: { db: name, collection }, actions };
}

function user(user, password, privileges) {
  const hasRole = database.runCommand({ rolesInfo: user }).roles.length > 0;
  database.runCommand({ [hasRole ? "updateRole" : "createRole"]: user, privileges, roles: [] });
  const hasUser = database.runCommand({ usersInfo: user }).users.length > 0;
  database.runCommand({ [hasUser ? "updateUser" : "createUser"]: user, pwd: password, roles: [user] });
}

// Aggregates are only ever read. tests/integration/deploy/test_compose.py compares this with LEAST_PRIVILEGES in exporter/storage/privileges.py.
const exporter = [
  on("workers", "find"),
  on("worker_metrics_timeseries", "find", "insert", "createCollection", "createIndex", "collMod", "listIndexes", "collStats"),
  on("worker_metrics_inventory", "find", "insert", "update"),
  on("cml_exporter_state", "find", "insert", "update"),
  on("", "listCollections"),
];
user("exporter", process.env.MONGODB_EXPORTER_PASSWORD, exporter);

// The simulator of `docker compose --profile demo`, which writes aggregates, and a past for the history to have; without a password
// there is none.
if (process.env.MONGODB_DEMO_PASSWORD) {
  user("demo", process.env.MONGODB_DEMO_PASSWORD, [
    ...exporter,
    on("workers", "insert", "update"),
    on("demo_state", "find", "insert", "update"),
  ]);
}
