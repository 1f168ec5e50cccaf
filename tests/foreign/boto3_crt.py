"""Uses S3 through awscrt. `test_boto3_crt.py` runs it with the Python of the environment `boto3`."""

import json
import os
import sys

import boto3
import botocore.session
from awscrt.auth import AwsCredentialsProvider
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from s3transfer.crt import BotocoreCRTRequestSerializer, CRTTransferManager, create_s3_crt_client

BUCKET, REGION, DISK = sys.argv[1], os.environ["AWS_REGION"], sys.argv[2]
PARTS = TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=5 * 2**20)
s3 = boto3.client("s3")
found = {}


def checksums(key):
    head = s3.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
    return {name: value for name, value in head.items() if name.startswith("Checksum")}


for algorithm in ("CRC64NVME", "CRC32C"):
    s3.put_object(Bucket=BUCKET, Key="small", Body=b"123456", ChecksumAlgorithm=algorithm)
    body = s3.get_object(Bucket=BUCKET, Key="small", ChecksumMode="ENABLED")["Body"].read()  # it compares
    options = {"ChecksumAlgorithm": algorithm}
    s3.upload_file(DISK, BUCKET, "parts", ExtraArgs=options, Config=PARTS)
    s3.download_file(BUCKET, "parts", f"{DISK}.{algorithm}")
    found[algorithm] = [body.decode(), checksums("small"), checksums("parts")]

session = botocore.session.get_session()
client = create_s3_crt_client(
    REGION,
    use_ssl=False,
    part_size=5 * 2**20,
    crt_credentials_provider=AwsCredentialsProvider.new_static(
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    ),
)
options = {"region_name": REGION, "endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
with CRTTransferManager(client, BotocoreCRTRequestSerializer(session, options)) as manager:
    manager.upload(DISK, BUCKET, "crt").result(60)
    manager.download(BUCKET, "crt", f"{DISK}.crt").result(60)
    found["crt"] = checksums("crt")
    manager.delete(BUCKET, "crt").result(60)

found["v4a"] = {}
v4a = boto3.client("s3", config=Config(signature_version="s3v4a", retries={"total_max_attempts": 1}))
try:
    v4a.list_buckets()
except ClientError as error:
    found["v4a"] = error.response["Error"]
print(json.dumps(found))
