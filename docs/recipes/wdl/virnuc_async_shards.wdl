version 1.0

# One sample on many machines: a plan, a task for each shard, and the tables of all of them.
# The tasks share no disk: a shard's directory travels in a tar file, and a preempted task begins anew, so choose
# so many shards that each takes minutes. A plan names its inputs and its model by their paths, which must be the
# same in every task: each task makes links to its copies in one directory of /tmp.

workflow virnuc_async_shards {
  meta {
    description: "Scores reads or contigs on many machines; the tables are those of one machine."
  }

  input {
    Array[File]   reads_inputs = []
    Array[String] urls = []
    Int    shards = 16
    String device = "T4"
    String options = "--calls"
    File?  model_tar
    String docker = "virnuc-async:latest"
  }

  parameter_meta {
    reads_inputs: {
      description: "Reads or contigs: FASTA, FASTQ or BAM, plain or compressed. Their names must differ.",
      patterns: ["*.bam", "*.fasta", "*.fa", "*.fasta.gz", "*.fa.gz", "*.fastq", "*.fastq.gz", "*.fq.gz"]
    }
    urls: { description: "Inputs that each task reads where they are, such as gs://BUCKET/reads.bgzf.fq.gz; behind the others." }
    shards: { description: "Into how many tasks the work is divided." }
    device: { description: "What every shard computes on: a GPU, such as T4 or A100-80GB, or cpu." }
    options: { description: "Options of plan, such as --model virnucpro-500." }
    model_tar: { description: "A tar file of a model's directory, if the model is not in the image." }
    docker: { description: "Image of virnuc-async with CUDA." }
  }

  call plan {
    input:
      reads_inputs = reads_inputs,
      urls = urls,
      device = device,
      options = options,
      model_tar = model_tar,
      docker = docker
  }

  scatter (number in range(shards)) {
    call shard {
      input:
        reads_inputs = reads_inputs,
        plan_json = plan.plan_json,
        place = plan.place,
        number = number,
        shards = shards,
        model_tar = model_tar,
        docker = docker
    }
  }

  call merge {
    input:
      plan_json = plan.plan_json,
      place = plan.place,
      shard_tars = shard.shard_tar,
      model_tar = model_tar,
      docker = docker
  }

  output {
    File  contigs_tsv = merge.contigs_tsv
    File  fragments_tsv = merge.fragments_tsv
    File  predictions_tsv = merge.predictions_tsv
    File  highestscore_tsv = merge.highestscore_tsv
    File? contig_calls_tsv = merge.contig_calls_tsv
    File? pairs_tsv = merge.pairs_tsv
    File  summary_json = merge.summary_json
  }
}

task plan {
  meta {
    description: "Decides what every shard must agree on; reads the inputs once."
  }

  input {
    Array[File]   reads_inputs
    Array[String] urls
    String device
    String options
    File?  model_tar
    String docker
  }

  parameter_meta {
    reads_inputs: { description: "Reads or contigs." }
    urls: { description: "Inputs that are read where they are." }
    device: { description: "What every shard computes on: a GPU, such as T4 or A100-80GB, or cpu." }
    options: { description: "Options of plan." }
    model_tar: { description: "A tar file of a model's directory, if the model is not in the image." }
    docker: { description: "Image of virnuc-async." }
  }

  command <<<
    set -euo pipefail

    files=~{write_lines(reads_inputs)}
    repeated=$(sed 's|.*/||' "$files" | sort | uniq -d)
    if [ -n "$repeated" ]; then
      echo "inputs must have different names, and these are there more than once: $repeated" >&2
      exit 64
    fi

    # The same inputs get the same directory, so that tables, which name their inputs, are the same, too.
    place=/tmp/virnuc-async-$(
      { cat "$files"; echo "~{default='' model_tar}"; } | sed '/^$/d' | while IFS= read -r path; do
        basename "$path"; stat -Lc %s "$path"; head -c 1000000 "$path"
      done | sha256sum | cut -c 1-16)
    echo "$place" > PLACE
    mkdir -p "$place"
    inputs=()
    while IFS= read -r path; do
      inputs+=("$place/$(basename "$path")")
      ln -sf "$(realpath "$path")" "$place/"
    done < "$files"
    while IFS= read -r url; do
      inputs+=("$url")
    done < ~{write_lines(urls)}
    model=()
    if [ -n "~{default='' model_tar}" ]; then
      mkdir -p model
      tar -xf "~{default='' model_tar}" -C model --strip-components=1
      ln -sfn "$PWD/model" "$place/model"
      model=(--model "$place/model")
    fi

    virnuc-async plan "${inputs[@]}" run --for-device ~{device} "${model[@]}" ~{options}
  >>>

  output {
    File   plan_json = "run/plan.json"
    String place = read_string("PLACE")
  }

  runtime {
    docker: docker
    memory: "8 GB"
    cpu: 4
    disks: "local-disk ~{ceil(size(reads_inputs, 'GB')) + 20} SSD"
    disk: "~{ceil(size(reads_inputs, 'GB')) + 20} GB"
    dx_instance_type: "mem1_ssd1_v2_x4"
    preemptible: 1
    maxRetries: 1
  }
}

task shard {
  meta {
    description: "Scores one shard of a plan."
  }

  input {
    Array[File] reads_inputs
    File   plan_json
    String place
    Int    number
    Int    shards
    File?  model_tar

    Int     cpu = 8
    Int     machine_mem_gb = 30
    String? accelerator_type
    Int?    accelerator_count
    String? gpu_type
    Int?    gpu_count
    String? vm_size
    String  docker
  }

  parameter_meta {
    reads_inputs: { description: "The inputs of the plan." }
    plan_json: { description: "The plan." }
    place: { description: "Directory that the plan knows the inputs and the model by." }
    number: { description: "Number of the shard, from 0." }
    shards: { description: "Number of shards." }
    model_tar: { description: "A tar file of a model's directory, if the model is not in the image." }
    cpu: { description: "CPU cores." }
    machine_mem_gb: { description: "Memory in GB." }
    accelerator_type: { description: "GCP: model of the GPU." }
    accelerator_count: { description: "GCP: number of GPUs." }
    gpu_type: { description: "Terra: model of the GPU." }
    gpu_count: { description: "Terra: number of GPUs." }
    vm_size: { description: "Azure: size of the machine." }
    docker: { description: "Image of virnuc-async with CUDA." }
  }

  command <<<
    set -euo pipefail

    mkdir -p "~{place}" run
    while IFS= read -r path; do
      ln -sf "$(realpath "$path")" "~{place}/"
    done < ~{write_lines(reads_inputs)}
    if [ -n "~{default='' model_tar}" ]; then
      mkdir -p model
      tar -xf "~{default='' model_tar}" -C model --strip-components=1
      ln -sfn "$PWD/model" "~{place}/model"
    fi

    cp "~{plan_json}" run/plan.json
    virnuc-async predict --plan run --shard ~{number}/~{shards} --threads ~{cpu}
    tar -cf shard.tar -C run shards
  >>>

  output {
    File shard_tar = "shard.tar"
  }

  runtime {
    docker: docker
    memory: "~{machine_mem_gb} GB"
    cpu: cpu
    disks: "local-disk ~{ceil(size(reads_inputs, 'GB')) + 60} SSD"
    disk: "~{ceil(size(reads_inputs, 'GB')) + 60} GB"
    gpu: true
    dx_instance_type: "mem1_ssd1_gpu2_x8"
    acceleratorType: select_first([accelerator_type, "nvidia-tesla-t4"])  # !UnknownRuntimeKey
    acceleratorCount: select_first([accelerator_count, gpu_count, 1])  # !UnknownRuntimeKey
    gpuType: select_first([gpu_type, "nvidia-tesla-t4"])
    gpuCount: select_first([gpu_count, accelerator_count, 1])
    vm_size: select_first([vm_size, "Standard_NC6s_v3"])  # !UnknownRuntimeKey
    preemptible: 3
    maxRetries: 3
  }
}

task merge {
  meta {
    description: "Writes the tables of all shards."
  }

  input {
    File   plan_json
    String place
    Array[File] shard_tars
    File?  model_tar
    String docker
  }

  parameter_meta {
    plan_json: { description: "The plan." }
    place: { description: "Directory that the plan knows the model by." }
    shard_tars: { description: "The shards, each a tar file." }
    model_tar: { description: "A tar file of a model's directory, if the model is not in the image." }
    docker: { description: "Image of virnuc-async." }
  }

  Int disk_gb = 3 * ceil(size(shard_tars, "GB")) + 40

  command <<<
    set -euo pipefail

    if [ -n "~{default='' model_tar}" ]; then
      mkdir -p "~{place}" model
      tar -xf "~{default='' model_tar}" -C model --strip-components=1
      ln -sfn "$PWD/model" "~{place}/model"
    fi

    mkdir -p run
    cp "~{plan_json}" run/plan.json
    while IFS= read -r path; do
      tar -xf "$path" -C run
    done < ~{write_lines(shard_tars)}
    virnuc-async merge run tables
  >>>

  output {
    File  contigs_tsv = "tables/contigs.tsv"
    File  fragments_tsv = "tables/fragments.tsv"
    File  predictions_tsv = "tables/prediction_results.txt"
    File  highestscore_tsv = "tables/prediction_results_highestscore.csv"
    File? contig_calls_tsv = "tables/contig_calls.tsv"
    File? pairs_tsv = "tables/pairs.tsv"
    File  summary_json = "tables/summary.json"
  }

  runtime {
    docker: docker
    memory: "8 GB"
    cpu: 2
    disks: "local-disk ~{disk_gb} SSD"
    disk: "~{disk_gb} GB"
    dx_instance_type: "mem1_ssd1_v2_x4"
    maxRetries: 1
  }
}
