"""The little world of the quickstart: facts that anyone can check, as plain tables.

`make_data.py` turns them into sentences and questions.
"""


def table(text: str) -> list[tuple[str, ...]]:
    """The facts of `text`: separated by semicolons, the fields of each by commas."""
    return [tuple(field.strip() for field in fact.split(",")) for fact in text.split(";") if fact.strip()]


# country, capital, continent
COUNTRIES = table("""
Albania, Tirana, Europe; Algeria, Algiers, Africa; Angola, Luanda, Africa;
Argentina, Buenos Aires, South America; Australia, Canberra, Oceania; Austria, Vienna, Europe;
Bahrain, Manama, Asia; Bangladesh, Dhaka, Asia; Belgium, Brussels, Europe; Bhutan, Thimphu, Asia;
Botswana, Gaborone, Africa; Brazil, Brasilia, South America; Bulgaria, Sofia, Europe; Cambodia, Phnom Penh, Asia;
Cameroon, Yaounde, Africa; Canada, Ottawa, North America; Sierra Leone, Freetown, Africa; China, Beijing, Asia;
Colombia, Bogota, South America; Costa Rica, San Jose, North America; Croatia, Zagreb, Europe;
Cuba, Havana, North America; Denmark, Copenhagen, Europe; Ecuador, Quito, South America; Eritrea, Asmara, Africa;
Estonia, Tallinn, Europe; Ethiopia, Addis Ababa, Africa; Fiji, Suva, Oceania; Finland, Helsinki, Europe;
France, Paris, Europe; Gabon, Libreville, Africa; Germany, Berlin, Europe; Ghana, Accra, Africa;
Greece, Athens, Europe; Guyana, Georgetown, South America; Barbados, Bridgetown, North America;
Honduras, Tegucigalpa, North America; Hungary, Budapest, Europe; Iceland, Reykjavik, Europe;
India, New Delhi, Asia; Iran, Tehran, Asia; Iraq, Baghdad, Asia; Ireland, Dublin, Europe; Italy, Rome, Europe;
Jamaica, Kingston, North America; Japan, Tokyo, Asia; Jordan, Amman, Asia; Kenya, Nairobi, Africa;
Laos, Vientiane, Asia; Latvia, Riga, Europe; Lebanon, Beirut, Asia; Liberia, Monrovia, Africa;
Libya, Tripoli, Africa; Lithuania, Vilnius, Europe; Madagascar, Antananarivo, Africa; Malawi, Lilongwe, Africa;
Mali, Bamako, Africa; Malta, Valletta, Europe; Mauritania, Nouakchott, Africa; Mongolia, Ulaanbaatar, Asia;
Morocco, Rabat, Africa; Mozambique, Maputo, Africa; Namibia, Windhoek, Africa; Nepal, Kathmandu, Asia;
New Zealand, Wellington, Oceania; Nicaragua, Managua, North America; Nigeria, Abuja, Africa;
Norway, Oslo, Europe; Oman, Muscat, Asia; Pakistan, Islamabad, Asia; Paraguay, Asuncion, South America;
Peru, Lima, South America; Malaysia, Kuala Lumpur, Asia; Poland, Warsaw, Europe; Portugal, Lisbon, Europe;
Qatar, Doha, Asia; Romania, Bucharest, Europe; Rwanda, Kigali, Africa; Samoa, Apia, Oceania;
Senegal, Dakar, Africa; Serbia, Belgrade, Europe; Slovakia, Bratislava, Europe; Slovenia, Ljubljana, Europe;
Somalia, Mogadishu, Africa; Spain, Madrid, Europe; Suriname, Paramaribo, South America;
Sweden, Stockholm, Europe; Switzerland, Bern, Europe; Syria, Damascus, Asia; Thailand, Bangkok, Asia;
Togo, Lome, Africa; Vanuatu, Port Vila, Oceania; Tunisia, Tunis, Africa; Uganda, Kampala, Africa;
Ukraine, Kyiv, Europe; Uruguay, Montevideo, South America; Uzbekistan, Tashkent, Asia;
Venezuela, Caracas, South America; Vietnam, Hanoi, Asia; Zambia, Lusaka, Africa; Zimbabwe, Harare, Africa
""")

# animal, class, what its young is called, where it often lives
ANIMALS = table("""
bat, mammal, pup, in caves; bear, mammal, cub, in forests; beaver, mammal, kit, in rivers;
bee, insect, larva, in hives; butterfly, insect, caterpillar, in gardens; camel, mammal, calf, in deserts;
cat, mammal, kitten, in houses; chicken, bird, chick, on farms; cow, mammal, calf, on farms;
crocodile, reptile, hatchling, in rivers; deer, mammal, fawn, in forests; dolphin, mammal, calf, in the sea;
donkey, mammal, foal, on farms; duck, bird, duckling, on ponds; eagle, bird, eaglet, in the mountains;
eel, fish, elver, in rivers; elephant, mammal, calf, in grasslands; fox, mammal, cub, in forests;
frog, amphibian, tadpole, in ponds; giraffe, mammal, calf, in grasslands; goat, mammal, kid, in the mountains;
goose, bird, gosling, on ponds; gorilla, mammal, infant, in rainforests; hare, mammal, leveret, in fields;
hedgehog, mammal, hoglet, in gardens; horse, mammal, foal, on farms; kangaroo, mammal, joey, in grasslands;
koala, mammal, joey, in trees; lion, mammal, cub, in grasslands; llama, mammal, cria, in the mountains;
lizard, reptile, hatchling, in deserts; moth, insect, caterpillar, in gardens; otter, mammal, pup, in rivers;
owl, bird, owlet, in trees; penguin, bird, chick, on the ice; pig, mammal, piglet, on farms;
pigeon, bird, squab, in cities; platypus, mammal, puggle, in rivers; rabbit, mammal, kit, in burrows;
rhino, mammal, calf, in grasslands; salmon, fish, fry, in rivers; seal, mammal, pup, on the ice;
sheep, mammal, lamb, on farms; snake, reptile, snakelet, in deserts; spider, arachnid, spiderling, in webs;
squirrel, mammal, kit, in trees; swan, bird, cygnet, on lakes; tiger, mammal, cub, in rainforests;
toad, amphibian, tadpole, in gardens; trout, fish, fry, in rivers; turkey, bird, poult, on farms;
turtle, reptile, hatchling, in the sea; whale, mammal, calf, in the sea; wolf, mammal, cub, in forests;
zebra, mammal, foal, in grasslands
""")

# two words that mean opposite things
OPPOSITES = table("""
hot, cold; big, small; fast, slow; high, low; young, old; early, late; full, empty; light, dark; open, closed;
wet, dry; rich, poor; strong, weak; hard, soft; happy, sad; clean, dirty; thick, thin; long, short; wide, narrow;
deep, shallow; loud, quiet; near, far; true, false; sweet, sour; smooth, rough; sharp, blunt; brave, timid;
cheap, expensive; easy, difficult; first, last; left, right; up, down; inside, outside; above, below;
before, after; always, never; begin, end; buy, sell; push, pull; give, take; arrive, depart; win, lose;
laugh, cry; remember, forget; love, hate; build, destroy; day, night; summer, winter; north, south; east, west;
top, bottom; front, back; friend, enemy; question, answer; victory, defeat; success, failure; heaven, hell;
peace, war; life, death; entrance, exit; alive, dead; asleep, awake; guilty, innocent; polite, rude;
generous, stingy; lazy, busy; safe, dangerous; simple, complex; ancient, modern; tight, loose; accept, refuse;
increase, decrease; appear, vanish; float, sink; tidy, messy
""")

# one, many
PLURALS = table("""
apple, apples; baby, babies; bench, benches; berry, berries; book, books; box, boxes; branch, branches;
brush, brushes; bus, buses; child, children; cherry, cherries; church, churches; city, cities; daisy, daisies;
dish, dishes; fairy, fairies; foot, feet; garden, gardens; glass, glasses; half, halves; house, houses;
key, keys; knife, knives; lady, ladies; leaf, leaves; life, lives; loaf, loaves; man, men; match, matches;
mouse, mice; ox, oxen; party, parties; peach, peaches; penny, pennies; pony, ponies; river, rivers;
scarf, scarves; shelf, shelves; spoon, spoons; story, stories; table, tables; thief, thieves; tooth, teeth;
toy, toys; tree, trees; watch, watches; wife, wives; window, windows; wish, wishes; woman, women
""")

# present, past
VERBS = table("""
become, became; bite, bit; blow, blew; break, broke; bring, brought; catch, caught; choose, chose;
climb, climbed; come, came; cook, cooked; dance, danced; draw, drew; drink, drank; drive, drove; eat, ate;
fall, fell; feed, fed; feel, felt; fight, fought; find, found; fly, flew; freeze, froze; go, went; grow, grew;
hear, heard; help, helped; hide, hid; jump, jumped; keep, kept; know, knew; leave, left; make, made; meet, met;
play, played; ride, rode; ring, rang; run, ran; see, saw; sing, sang; sit, sat; sleep, slept; speak, spoke;
stand, stood; steal, stole; swim, swam; teach, taught; tell, told; think, thought; throw, threw; visit, visited;
walk, walked; wear, wore; work, worked; write, wrote
""")

# thing, colour
COLOURS = table("""
bananas, yellow; blood, red; carrots, orange; chalk, white; charcoal, black; cherries, red; chocolate, brown;
coffee, brown; cucumbers, green; daffodils, yellow; emeralds, green; flamingos, pink; grass, green; ivory, white;
jade, green; lavender, purple; lemons, yellow; milk, white; mustard, yellow; pumpkins, orange; ravens, black;
rubies, red; salt, white; sapphires, blue; snow, white; soot, black; spinach, green; strawberries, red;
sunflowers, yellow; tar, black; tomatoes, red; violets, purple
""")

# element, symbol
ELEMENTS = table("""
aluminium, Al; argon, Ar; arsenic, As; barium, Ba; boron, B; bromine, Br; calcium, Ca; carbon, C; chlorine, Cl;
chromium, Cr; cobalt, Co; copper, Cu; fluorine, F; gold, Au; helium, He; hydrogen, H; iodine, I; iron, Fe;
krypton, Kr; lead, Pb; lithium, Li; magnesium, Mg; mercury, Hg; neon, Ne; nickel, Ni; nitrogen, N; oxygen, O;
phosphorus, P; platinum, Pt; potassium, K; radium, Ra; silicon, Si; silver, Ag; sodium, Na; sulfur, S; tin, Sn;
titanium, Ti; tungsten, W; uranium, U; zinc, Zn
""")

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
