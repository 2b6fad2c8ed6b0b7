/* A stand-in for libnvidia-ml with the symbols that specbench asks for, loaded by the real bindings through LD_LIBRARY_PATH.
 *
 * Time comes from the file named by FAKE_NVML_CLOCK (seconds as text), so that tests move it and nothing waits; without it, from
 * the monotonic clock. The first device draws 100 W + 200 W while the clock's fraction of a 2 s period is below one half; its
 * energy counter is the exact integral, but ticks every 100 ms. The second has no energy counter (NotSupported) and draws 50 W.
 * FAKE_NVML_MODE: "frozen" (the counter never moves), "lost" (every reading fails), "empty" (no device), "old" (no field values,
 * no event reasons under their new name), "throttled" (power cap and thermal slowdown).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int result;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15 };

static int devices[2] = {0, 1};
static const char *uuids[2] = {"GPU-fake-0000", "GPU-fake-1111"};

static int mode(const char *name) {
    const char *value = getenv("FAKE_NVML_MODE");
    return value && strcmp(value, name) == 0;
}

static double now(void) {
    const char *path = getenv("FAKE_NVML_CLOCK");
    double seconds = 0;
    if (path) {
        FILE *file = fopen(path, "r");
        if (!file || fscanf(file, "%lf", &seconds) != 1) abort();
        fclose(file);
        return seconds;
    }
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static int index_of(void *device) { return *(int *)device; }

static double watts(void *device, double t) {
    if (index_of(device)) return 50;
    double phase = t - 2 * (long long)(t / 2);
    return phase < 1 ? 300 : 100;
}

static double joules(double t) { /* integral of the first device's power from 0 */
    long long periods = (long long)(t / 2);
    double phase = t - 2 * periods;
    return periods * 400.0 + (phase < 1 ? 300 * phase : 300 + 100 * (phase - 1));
}

result nvmlInitWithFlags(unsigned flags) { (void)flags; return SUCCESS; }
result nvmlInit_v2(void) { return SUCCESS; }
result nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(result r) { return r == NOT_SUPPORTED ? "Not Supported" : r == GPU_IS_LOST ? "GPU is lost" : "Error"; }
result nvmlSystemGetDriverVersion(char *text, unsigned n) { snprintf(text, n, "000.00-fake"); return SUCCESS; }
result nvmlDeviceGetCount_v2(unsigned *count) { *count = mode("empty") ? 0 : 2; return SUCCESS; }

result nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) {
    if (i > 1) return INVALID_ARGUMENT;
    *device = &devices[i];
    return SUCCESS;
}

result nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    for (int i = 0; i < 2; i++)
        if (strcmp(uuid, uuids[i]) == 0) { *device = &devices[i]; return SUCCESS; }
    return NOT_FOUND;
}

result nvmlDeviceGetName(void *device, char *text, unsigned n) { (void)device; snprintf(text, n, "FAKE-GPU (test double)"); return SUCCESS; }
result nvmlDeviceGetUUID(void *device, char *text, unsigned n) { snprintf(text, n, "%s", uuids[index_of(device)]); return SUCCESS; }

result nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    if (mode("lost")) return GPU_IS_LOST;
    if (index_of(device)) return NOT_SUPPORTED;
    double tick = (long long)(now() * 10 + 1e-6) / 10.0;
    *millijoules = mode("frozen") ? 123456 : (unsigned long long)(joules(tick) * 1000 + 0.5);
    return SUCCESS;
}

result nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    if (mode("lost")) return GPU_IS_LOST;
    *milliwatts = (unsigned)(watts(device, now()) * 1000) + (mode("old") ? 0 : 7000); /* the averaging sensor reads otherwise */
    return SUCCESS;
}

typedef struct {
    uint32_t field_id, scope_id;
    int64_t timestamp, latency;
    int value_type, status;
    union { double d; unsigned u; unsigned long long ull; } value;
} field;

result nvmlDeviceGetFieldValues(void *device, int n, field *fields) {
    if (mode("old")) return FUNCTION_NOT_FOUND;
    for (int i = 0; i < n; i++) {
        fields[i].status = mode("lost") ? GPU_IS_LOST : fields[i].field_id == 186 ? SUCCESS : NOT_SUPPORTED;
        fields[i].value_type = 1;
        fields[i].value.u = (unsigned)(watts(device, now()) * 1000);
    }
    return SUCCESS;
}

result nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) { (void)device; rates[0] = 75; rates[1] = 20; return SUCCESS; }

result nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    (void)device;
    memory[0] = 80ull << 30, memory[1] = 79ull << 30, memory[2] = 1ull << 30; /* total, free, used */
    return SUCCESS;
}

result nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) { (void)device; (void)sensor; *celsius = 41 + (unsigned)now(); return SUCCESS; }
result nvmlDeviceGetClockInfo(void *device, int kind, unsigned *mhz) { (void)device; *mhz = kind == 1 ? 1980 : 2619; return SUCCESS; }
result nvmlDeviceGetMaxClockInfo(void *device, int kind, unsigned *mhz) { return nvmlDeviceGetClockInfo(device, kind, mhz); }
result nvmlDeviceGetPowerManagementLimit(void *device, unsigned *milliwatts) { (void)device; *milliwatts = 700000; return SUCCESS; }
result nvmlDeviceGetPersistenceMode(void *device, int *state) { (void)device; *state = 1; return SUCCESS; }

static result reasons(unsigned long long *bits) { *bits = mode("throttled") ? 0x04 | 0x20 | 0x01 : 0x01; return SUCCESS; }
result nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits) { (void)device; return reasons(bits); }
result nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *bits) {
    (void)device;
    return mode("old") ? FUNCTION_NOT_FOUND : reasons(bits);
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } process;

result nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process *list) {
    (void)device;
    if (*count < 1) { *count = 1; return 7; /* insufficient size */ }
    *count = 1;
    list[0] = (process){4242, 1 << 20, 0, 0};
    return SUCCESS;
}
