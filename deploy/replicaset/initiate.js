// Makes the server a replica set of one node, named as the other services reach it. Does nothing if it is one; fails until it can be done.
const admin = db.getSiblingDB("admin");
if (!admin.hello().setName) {
  admin.auth("root", process.env.MONGO_INITDB_ROOT_PASSWORD);
  const done = admin.runCommand({ replSetInitiate: { _id: "rs0", members: [{ _id: 0, host: "mongodb:27017" }] } });
  if (!done.ok && done.codeName !== "AlreadyInitialized") {
    throw new Error(`the replica set cannot be initiated: ${done.errmsg}`);
  }
}
