// A driver for virtio-blk (virtio 1.2, 5.2) that writes without end and says what it was told is durable. Whoever reads
// that, and kills the machine, can tell from the numbers alone what must be on the disk: tests/disk/killed.rs has the same
// arithmetic.
#include "guest.h"

#define BLOCK 4096
#define SECTORS (BLOCK / 512)
#define BATCH 8
#define STRIDE 1777
#define ENTRIES 32
#define QUEUES 4

#define IN 0
#define OUT 1
#define FLUSH 4
#define GET_ID 8
#define DISCARD 11
#define WRITE_ZEROES 13

#define NEXT 1
#define DEVICE_WRITES 2

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct available { u16 flags, index, ring[ENTRIES]; };
struct used { u16 flags, index; struct { u32 id, length; } ring[ENTRIES]; };

static struct queue {
    struct descriptor descriptors[ENTRIES] __attribute__((aligned(4096)));
    struct available available __attribute__((aligned(4096)));
    struct used used __attribute__((aligned(4096)));
    u64 doorbell;
} queues[QUEUES];
// The one that requests go to.
static struct queue *queue = queues;
static u64 data[BATCH][BLOCK / 8] __attribute__((aligned(4096)));
static struct { u32 kind, reserved; u64 sector; } headers[BATCH];
static struct { u64 sector; u32 sectors, flags; } ranges[BATCH];
static volatile u8 statuses[BATCH];

static u64 mix(u64 x)
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

// Where a structure of this kind is (4.1.4), and with `multiplier` what follows it.
static u64 structure(u32 function, u8 kind, u32 *multiplier)
{
    unsigned at = config_read(function, 0x34) & 0xfc;
    for (unsigned limit = 48; at && limit; limit--) {
        u32 header = config_read(function, at);
        if ((header & 0xff) == 9 && header >> 24 == kind) {
            if (multiplier)
                *multiplier = config_read(function, at + 16);
            return bar(function, config_read(function, at + 4) & 0xff) + config_read(function, at + 8);
        }
        at = header >> 8 & 0xfc;
    }
    return 0;
}

// Sets up as many queues as there are, up to `QUEUES`; their number is in `*count`.
static bool start(u32 wanted, unsigned *count)
{
    u32 function = 0xff;
    do
        if (!next_function(&function))
            return false;
    while (config_read(function, 0) != 0x10421af4);
    config_write(function, 4, (config_read(function, 4) & 0xffff) | 6);
    u32 multiplier = 0;
    u64 common = structure(function, 1, 0), notify = structure(function, 2, &multiplier);
    write8(common + 20, 0);
    while (read8(common + 20))
        ;
    write8(common + 20, 1);
    write8(common + 20, 1 | 2);
    write32(common, 0);
    u32 offered = read32(common + 4);
    print("features %x\n", (u64)offered);
    write32(common + 8, 0);
    write32(common + 12, offered & wanted);
    write32(common + 8, 1);
    write32(common + 12, 1);
    write8(common + 20, 1 | 2 | 8);
    if (!(read8(common + 20) & 8))
        return false;
    u16 most = read16(common + 18);
    *count = most < QUEUES ? most : QUEUES;
    for (unsigned i = 0; i < *count; i++) {
        write16(common + 22, (u16)i);
        write16(common + 24, ENTRIES);
        write64(common + 32, (u64)queues[i].descriptors);
        write64(common + 40, (u64)&queues[i].available);
        write64(common + 48, (u64)&queues[i].used);
        queues[i].doorbell = notify + (u64)read16(common + 30) * multiplier;
        write16(common + 28, 1);
    }
    write8(common + 20, 1 | 2 | 8 | 4);
    return true;
}

static void describe(unsigned at, volatile void *what, u32 length, u16 flags)
{
    queue->descriptors[at] = (struct descriptor){ (u64)what, length, flags, (u16)(at + 1) };
}

// Hands request `slot` to the device: a header, perhaps data in one direction, and a status.
static void submit_data(unsigned slot, u32 kind, u64 sector, void *what, u32 length, u16 direction)
{
    unsigned at = 3 * slot;
    headers[slot].kind = kind;
    headers[slot].sector = sector;
    statuses[slot] = 0xff;
    describe(at, &headers[slot], 16, NEXT);
    if (length)
        describe(at + 1, what, length, NEXT | direction);
    else
        queue->descriptors[at].next = (u16)(at + 2);
    describe(at + 2, &statuses[slot], 1, DEVICE_WRITES);
    queue->available.ring[queue->available.index % ENTRIES] = (u16)at;
    __asm__ volatile("" : : : "memory");
    *(volatile u16 *)&queue->available.index = (u16)(queue->available.index + 1);
}

static void submit(unsigned slot, u32 kind, u64 sector, void *what, u32 length)
{
    submit_data(slot, kind, sector, what, length, 0);
}

// Rings, and waits until all that was handed over came back.
static void back(void)
{
    __asm__ volatile("mfence" : : : "memory");
    write16(queue->doorbell, (u16)(queue - queues));
    while (*(volatile u16 *)&queue->used.index != queue->available.index)
        __asm__ volatile("pause" : : : "memory");
}

// The same, and all came back well.
static bool done(unsigned count)
{
    back();
    for (unsigned slot = 0; slot < count; slot++)
        if (statuses[slot]) {
            print("status %u of request %u\n", (u64)statuses[slot], (u64)slot);
            return false;
        }
    return true;
}

static void write_block(unsigned slot, u64 n, u64 blocks)
{
    u64 sector = (mix(n / BATCH) + n % BATCH * STRIDE) % blocks * SECTORS;
    if (n % 7 == 3) {
        ranges[slot].sector = sector;
        ranges[slot].sectors = SECTORS;
        ranges[slot].flags = 1;
        submit(slot, WRITE_ZEROES, 0, &ranges[slot], sizeof ranges[slot]);
        return;
    }
    for (unsigned i = 0; i < BLOCK / 8; i++)
        data[slot][i] = mix(n) + i;
    submit(slot, OUT, sector, data[slot], BLOCK);
}

void disk(void)
{
    u64 blocks = number("blocks", 1), first = number("first", 0), last = first + number("count", 1u << 30);
    unsigned count;
    if (!start(1u << 9 | 1u << 14, &count))
        return print("no disk\n");
    for (u64 n = first; n < last; n += BATCH) {
        for (unsigned slot = 0; slot < BATCH; slot++)
            write_block(slot, n + slot, blocks);
        if (!done(BATCH))
            return;
        submit(0, FLUSH, 0, 0, 0);
        if (!done(1))
            return;
        print("durable %u\n", n + BATCH);
    }
    print("all\n");
}

static u64 status_of(u32 kind, u64 sector, void *what, u32 length, u16 direction)
{
    submit_data(0, kind, sector, what, length, direction);
    back();
    return statuses[0];
}

// A block of `value`.
static void fill(u64 value)
{
    for (unsigned i = 0; i < BLOCK / 8; i++)
        data[0][i] = value;
}

static const char *holds(u64 sector, u64 value)
{
    fill(~value);
    if (status_of(IN, sector, data[0], BLOCK, DEVICE_WRITES))
        return "nothing";
    for (unsigned i = 0; i < BLOCK / 8; i++)
        if (data[0][i] != value)
            return "something else";
    return "it";
}

// Each kind of request on each queue, and what is answered.
void requests(void)
{
    unsigned count;
    // All that there is, but nothing of rings.
    if (!start(0x00ffffff, &count))
        return print("no disk\n");
    print("queues %u\n", (u64)count);
    for (unsigned i = 0; i < count; i++) {
        u64 sector = (u64)i * 2 * SECTORS, value = mix(i);
        queue = &queues[i];
        print("queue %u:", (u64)i);
        fill(value);
        print(" write %u", status_of(OUT, sector, data[0], BLOCK, 0));
        print(" read %s", holds(sector, value));
        print(" flush %u", status_of(FLUSH, 0, 0, 0, 0));
        ranges[0].sector = sector;
        ranges[0].sectors = SECTORS;
        ranges[0].flags = 0;
        print(" discard %u", status_of(DISCARD, 0, &ranges[0], sizeof ranges[0], 0));
        fill(value);
        print(" write %u", status_of(OUT, sector, data[0], BLOCK, 0));
        print(" zeroes %u", status_of(WRITE_ZEROES, 0, &ranges[0], sizeof ranges[0], 0));
        print(" read %s", holds(sector, 0));
        // At no address that past the page cache is taken as it is.
        fill(value);
        print(" write %u", status_of(OUT, sector + SECTORS, (u8 *)data[0] + 4, 512, 0));
        print(" read %u", status_of(IN, sector + SECTORS, (u8 *)data[1] + 12, 512, DEVICE_WRITES));
        bool same = true;
        for (unsigned i = 0; i < 512; i++)
            same = same && ((u8 *)data[0])[i + 4] == ((u8 *)data[1])[i + 12];
        print(" %s", same ? "same" : "other");
        print(" name %u", status_of(GET_ID, 0, data[1], 20, DEVICE_WRITES));
        print(" %s", (const char *)data[1]);
        print(" beyond %u", status_of(IN, 1ull << 40, data[0], BLOCK, DEVICE_WRITES));
        print(" nonsense %u\n", status_of(99, 0, data[0], BLOCK, DEVICE_WRITES));
    }
    print("all\n");
}
