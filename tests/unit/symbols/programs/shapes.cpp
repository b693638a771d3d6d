// Layouts worth comparing with gdb's ptype /o: bit-fields, inheritance, unions, arrays, enums, templates.
#include <cstdint>

enum class Colour : uint8_t { red = 1, green = 2 };

struct Bits {
	unsigned a : 3;
	int b : 5;
	unsigned long long c : 40;
	uint8_t d;
	bool e : 1;
	bool f : 1;
	unsigned : 3;
	Colour g : 2;
	int16_t h;
};

struct Base {
	virtual ~Base() {}
	int id;
	char tail;
};

struct Second {
	double weight;
};

template <typename T, int N> struct Box {
	T items[N];
	uint16_t used;
};

struct Derived : Base, Second {
	Bits bits;
	Box<int32_t, 3> box;
	Box<Second, 2> *next;
	union {
		uint64_t whole;
		struct {
			uint32_t low, high;
		} half;
	} value;
	float &reference;
	static int shared;
	Derived(float &r) : reference(r) {}
};
int Derived::shared = 1;

struct __attribute__((packed)) Packed {
	char c;
	uint32_t n;
	Colour colour;
};

int main()
{
	float f = 0;
	Derived derived(f);
	Packed packed = {};
	return derived.id + packed.n + Derived::shared;
}
